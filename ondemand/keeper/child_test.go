package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runChild is what child processes do.
//
//	keeper ADDRESS PATIENCE [replace]     serves
//	daemon ADDRESS [hang|release|obey]    dials, says what is held, holds what its standard input names, and then, when another one takes
//	                                      over, hangs, releases and goes on living, or exits
//	leaver ADDRESS                        dials, and lives on without the connection
//	unaware ADDRESS                       is a successor that says that it has everything, and has not asked for a device
//	halfway ADDRESS                       is a successor that never says that it has everything
//	filler ADDRESS, reader PATH [denied]  see kernel_test.go
func runChild(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	role, address := args[0], args[1]
	switch role {
	case "keeper":
		return keeperChild(address, args[2], slices.Contains(args, "replace"))
	case "daemon":
		return daemonChild(ctx, address, args[2])
	case "filler":
		return fillerChild(ctx, address)
	case "reader":
		return readerChild(args[1], len(args) > 2)
	case "unaware":
		return unawareChild(ctx, address)
	case "leaver":
		c, _, _, err := Dial(ctx, address)
		if err != nil {
			return err
		}
		c.Close()
		fmt.Println("left")
	case "halfway":
		_, in, err := dial(ctx, address, successor)
		if err != nil {
			return err
		}
		fmt.Println("has", len(in.held))
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func keeperChild(address, patience string, replace bool) error {
	d, err := time.ParseDuration(patience)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return Serve(ctx, Options{Address: address, Patience: d, Replace: replace, Version: "child", Ready: func() { fmt.Println("ready") }})
}

func daemonChild(ctx context.Context, address, manner string) error {
	c, held, _, err := Dial(ctx, address)
	if err != nil {
		return err
	}
	var names []string
	for _, h := range held {
		if err := checkStandIn(h); err != nil {
			return err
		}
		names = append(names, h.Name)
	}
	slices.Sort(names)
	fmt.Println("dialed", strings.Join(names, ","))
	<-c.Done()
	fmt.Println("done", errors.Is(c.Err(), ErrSuperseded))
	switch manner {
	case "obey":
		return nil
	case "release":
		if err := c.Release(ctx); err != nil {
			return err
		}
		fmt.Println("released")
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
