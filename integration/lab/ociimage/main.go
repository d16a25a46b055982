// Command ociimage makes the layers and images that tests and benchmarks pull.
//
//	ociimage layer DIR OUT.tar           the layer tar of a directory, or of an overlayfs upper directory
//	ociimage layout [-compression FORM] [-entrypoint JSON] [-first FILE,...] -o OUT LAYER.tar...
//	                                     an OCI image layout with one image, its lowest layer first
//
// FORM is gzip, zstd, none, or one of those with an index: estargz, or zstdchunked-stargz, which is the dialect of nerdctl and ctr-remote.
// Podman's dialect is made by skopeo, from a layout with the form none.
//
// Layers look as container builders make them: PAX headers with nanoseconds, whiteouts as .wh. entries, hard links as links, and all
// extended attributes but those that belong to overlayfs or to a security module.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
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
	form := flags.String("compression", "gzip", "gzip, zstd, none, estargz or zstdchunked-stargz")
	entrypoint := flags.String("entrypoint", "", "JSON array of strings")
	first := flags.String("first", "", "files that an index names as needed first, separated by commas; a layer may lack them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return errors.New("usage: ociimage layout -o OUT LAYER.tar (one or more)")
	}
	c := compression{form: *form}
	if *first != "" {
		c.first = strings.Split(*first, ",")
	}
	return writeLayout(*out, c, *entrypoint, flags.Args())
}
