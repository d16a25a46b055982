package credentials

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	helper "github.com/docker/docker-credential-helpers/credentials"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

const (
	// helperTimeout bounds one run of a credential program. Those of cloud providers make a few requests, within seconds.
	helperTimeout = 30 * time.Second
	// helperGrace is how long we go on reading after a program was killed: its children may hold its output open.
	helperGrace = time.Second
	// maxHelperBytes bounds what is read of a credential program's output. Tokens of cloud providers have a few KiB.
	maxHelperBytes = 64 << 10
	// tokenUser is the user name by which credential programs mark an identity token.
	tokenUser = "<token>"
)

// askHelper runs docker-credential-NAME, found on PATH, to get the credential for server.
func askHelper(ctx context.Context, name, server string) (login.Login, error) {
	program := "docker-credential-" + name
	if strings.ContainsRune(name, '/') {
		return login.Login{}, fmt.Errorf("credential program %q: its name must not contain a slash", program)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	run := &helperRun{cmd: newHelper(ctx, program)}
	found, err := client.Get(func(args ...string) client.Program {
		run.cmd.Args = append(run.cmd.Args, args...)
		return run
	}, server)
	switch {
	case helper.IsErrCredentialsNotFound(err):
		return login.Login{}, nil
	case run.err != nil && ctx.Err() != nil:
		return login.Login{}, fmt.Errorf("credential program %s: no answer: %w", program, context.Cause(ctx))
	case run.err != nil:
		// The error of client.Get shows the output, which may hold a secret.
		return login.Login{}, fmt.Errorf("credential program %s: %w; try: echo %s | %s get", program, run.err, server, program)
	case err != nil:
		return login.Login{}, fmt.Errorf("credential program %s: its answer is not the JSON of a credential", program)
	case found.Username == tokenUser:
		return login.Login{Secret: found.Secret}, nil
	}
	return login.Login{User: found.Username, Secret: found.Secret}, nil
}

// newHelper returns a command that leaves nothing running: the program gets a process group of its own, which is killed with it.
func newHelper(ctx context.Context, program string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = helperGrace
	return cmd
}

// helperRun is one run of a credential program, as the protocol's client wants it. What the program writes to its standard error is
// dropped.
type helperRun struct {
	cmd *exec.Cmd
	err error // why the run failed, without output
}

// Input sets what the program reads.
func (r *helperRun) Input(in io.Reader) { r.cmd.Stdin = in }

// Output runs the program and returns what it wrote.
func (r *helperRun) Output() ([]byte, error) {
	var out limitedBuffer
	r.cmd.Stdout = &out
	r.err = r.cmd.Run()
	if out.exceeded {
		r.err = errTooLong
	}
	return out.held.Bytes(), r.err
}

var errTooLong = fmt.Errorf("wrote more than %d bytes", maxHelperBytes)

// limitedBuffer holds up to maxHelperBytes. A write beyond that fails, so that whoever writes stops.
type limitedBuffer struct {
	held     bytes.Buffer
	exceeded bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.held.Len()+len(p) > maxHelperBytes {
		b.exceeded = true
		return 0, errTooLong
	}
	return b.held.Write(p)
}
