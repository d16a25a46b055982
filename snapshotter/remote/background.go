package remote

import "context"

type backgroundKey struct{}

// Background marks work that nobody waits for: a Registry may take its time with it.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

// InBackground says whether ctx is of work that nobody waits for.
func InBackground(ctx context.Context) bool { return ctx.Value(backgroundKey{}) != nil }
