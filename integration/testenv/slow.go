package testenv

import (
	"os"
	"strconv"
	"time"
)

// Slow is how much longer than usual everything may take on this machine: the number in EROFS_TEST_SLOW, at least 1.
var Slow = slowness(os.Getenv("EROFS_TEST_SLOW"))

func slowness(text string) time.Duration {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}
