// SPDX-License-Identifier: GPL-2.0-or-later

// Fills a heap, drops most of it, lets the scavenger return what it will, then has it return all, and fills
// the heap in part again.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

var in = bufio.NewReader(os.Stdin)

func mark(name string) {
	fmt.Printf("mark %s\n", name)
	in.ReadString('\n')
}

func main() {
	seed := uint32(1)
	kept := make([][]byte, 30000)
	fill := func(i int) {
		seed = seed*1103515245 + 12345
		kept[i] = make([]byte, 16+(seed>>16)%2000)
		for at := range kept[i] {
			kept[i][at] = 1
		}
	}
	for i := range kept {
		fill(i)
	}
	mark("filled")
	for i := range kept {
		if i/256%4 != 0 {
			kept[i] = nil
		}
	}
	runtime.GC()
	mark("three quarters dropped")
	time.Sleep(4 * time.Second)
	mark("scavenger ran")
	debug.FreeOSMemory()
	mark("returned")
	for i := 0; i < len(kept)/2; i++ {
		if kept[i] == nil {
			fill(i)
		}
	}
	mark("filled again")
	runtime.KeepAlive(kept)
}
