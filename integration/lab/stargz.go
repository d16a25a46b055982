package lab

import "context"

// Stargz is the name of the stargz snapshotter in the generated containerd configuration, with Options.Stargz.
const Stargz = "stargz"

// stargzProgram is the program that serves it.
const stargzProgram = "ministargz"

// StargzRoot is the root directory of the stargz snapshotter.
func (l *Lab) StargzRoot() string { return l.path("stargz") }

func (l *Lab) stargzAddress() string { return l.path("stargz.sock") }

func (l *Lab) startStargz(ctx context.Context) (err error) {
	l.stargz, err = l.startProcess(Stargz, Program(stargzProgram), "-root", l.StargzRoot(), "-address", l.stargzAddress())
	if err != nil {
		return err
	}
	return l.stargz.ready(ctx, listens(l.stargzAddress()))
}
