// Package fscache holds a kernel to what ondemand/cachefiles and fsbackend/fscache expect of it together: EROFS images that are mounted over the
// kernel's cache, and read while it is served, taken over, lost, culled and full.
//
// The tests are meant for the virtual machines of integration/vm: a kernel has one cache, and few hosts have it. Where the kernel's command line
// does not promise it (guest.AnswersVariable), they do nothing.
package fscache
