// Package backendtest is the meaning of fsbackend.Backend: a suite that every backend passes.
//
// # Testing a backend
//
// A backend's test hands the suite a way to make a backend and a way to make images:
//
//	func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
//
//	func TestBackend(t *testing.T) {
//		testenv.Need(t, testenv.Root, testenv.EROFS)
//		backendtest.Run(t, func(t *testing.T) fsbackend.Backend { return mine.New(mine.Options{}) }, backendtest.TinyImage)
//	}
//
// The suite asks for a new backend in each test, and for several in the tests that play a restart: two backends must agree without
// telling each other anything, because the kernel's mount table is the only record.
//
// The image function writes the files of image number n into dir. The image holds a regular file /file with the bytes of Content(n),
// at least one block of which lies in the data blob. TinyImage makes such images without the converter.
//
// # What a backend promises
//
//   - Mount makes the image readable at the target, read-only, nosuid and nodev. Doing it again, also by another backend, changes nothing.
//   - A Mount that fails leaves nothing: no mount, no loop device. Its error names the files and the target, and says what the kernel said.
//     Files that are missing, damaged or cut off are errors of Mount, not of a later read.
//   - Unmount takes the mount away at once. Open files and overlay mounts that use it go on reading right bytes, even when the files
//     of the image are deleted. When the last of them is gone, nothing is left.
//   - Unmount where nothing is mounted is not an error.
//   - Many images at a time and many goroutines at a time work.
//   - Mounts that vanished (a reboot, an operator) are made again by Mount.
//
// After each test the suite looks for mounts and loop devices that were left behind. Loop devices may end a moment after their
// last user, so it looks for a while before it complains.
package backendtest
