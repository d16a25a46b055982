// Id prints the effective user id. In the virtual machine it takes the place of id(1) for a test of set-id programs: busybox's own
// gives up the rights of a set-id bit before it looks.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Println(os.Geteuid()) }
