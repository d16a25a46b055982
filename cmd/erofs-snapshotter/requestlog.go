package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// logUnary logs requests: failures that an operator should see as warnings, everything else for debugging.
func logUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		start := time.Now()
		resp, err := handle(ctx, req)
		logRequest(ctx, log, info.FullMethod, start, err)
		return resp, err
	}
}

func logStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		start := time.Now()
		err := handle(srv, stream)
		logRequest(stream.Context(), log, info.FullMethod, start, err)
		return err
	}
}

func logRequest(ctx context.Context, log *slog.Logger, method string, start time.Time, err error) {
	level := slog.LevelWarn
	switch status.Code(err) {
	case codes.OK, codes.NotFound, codes.AlreadyExists, codes.Unimplemented, codes.Canceled:
		// Answers that containerd asks for in its normal course.
		level = slog.LevelDebug
	}
	if !log.Enabled(ctx, level) {
		return
	}
	namespace, _ := namespaces.Namespace(ctx)
	attrs := []slog.Attr{slog.String("method", method), slog.String("namespace", namespace), slog.Duration("took", time.Since(start))}
	if err != nil {
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
	}
	log.LogAttrs(ctx, level, "request", attrs...)
}
