// Package step names the points of an operation at which a crash is interesting, so that tests can make one there.
package step

// Hook is called at every named point. It is nil except in tests, which set it before anything runs.
var Hook func(name string)

// Reached says that the point called name is reached.
func Reached(name string) {
	if Hook != nil {
		Hook(name)
	}
}
