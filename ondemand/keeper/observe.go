package keeper

import (
	"context"
	"fmt"
)

// statusTimeout bounds Status: nothing that a keeper does keeps observers waiting.
const statusTimeout = 2 * ioTimeout

// Status asks the keeper at address how it is, without taking any role.
func Status(ctx context.Context, address string) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	c, in, err := dial(ctx, address, observer)
	if err != nil {
		return Report{}, fmt.Errorf("keeper at %s: %w", address, err)
	}
	c.close()
	in.close()
	in.report.Names = in.names
	return in.report, nil
}
