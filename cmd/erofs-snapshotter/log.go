package main

import (
	"io"
	"log/slog"

	containerdlog "github.com/containerd/log"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
)

// newLogger returns the logger that a configuration describes.
func newLogger(w io.Writer, cfg config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		panic(err) // config lets only slog's names pass
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// adoptLibraries makes log the one of the whole process. containerd's packages would write to standard error past it, in a form of their
// own. Of what they say only warnings and errors are taken: below that they repeat what we say, and at debug they show headers of requests.
func adoptLibraries(log *slog.Logger) error {
	slog.SetDefault(log)
	containerdlog.UseSlog() // slog's default
	return containerdlog.SetLevel(containerdlog.WarnLevel)
}
