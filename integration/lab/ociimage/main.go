// Command ociimage makes the layers and images that tests and benchmarks pull.
//
//	ociimage layer DIR OUT.tar           the layer tar of a directory, or of an overlayfs upper directory
//	ociimage layout [-compression gzip|zstd|none] [-entrypoint JSON] -o OUT LAYER.tar...
//	                                     an OCI image layout with one image, its lowest layer first
//
// Layers look as container builders make them: PAX headers with nanoseconds, whiteouts as .wh. entries, hard links as links, and all
// extended attributes but those that belong to overlayfs or to a security module.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ociimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: ociimage layer DIR OUT.tar, or ociimage layout -o OUT LAYER.tar (one or more)")
	}
	switch args[0] {
	case "layer":
		if len(args) != 3 {
			return errors.New("usage: ociimage layer DIR OUT.tar")
		}
		return writeLayer(args[1], args[2])
	case "layout":
		return layout(args[1:])
	}
	return fmt.Errorf("no command %q", args[0])
}

func layout(args []string) error {
	flags := flag.NewFlagSet("layout", flag.ContinueOnError)
	out := flags.String("o", "", "layout directory to make")
	compression := flags.String("compression", "gzip", "gzip, zstd or none")
	entrypoint := flags.String("entrypoint", "", "JSON array of strings")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return errors.New("usage: ociimage layout -o OUT LAYER.tar (one or more)")
	}
	return writeLayout(*out, *compression, *entrypoint, flags.Args())
}
