//go:build !amd64 && !arm64

package inflate

// fast decodes one symbol: what fast.go takes for granted is not known to hold on this machine.
func (d *decoder) fast(buf []byte, low, at int) (int, error) { return d.step(buf, low, at) }
