// Gotest runs `go test` with its arguments and says at the end, in plain words, which tests were skipped and why. It prints
// go test's own closing line of each package, and what failed tests said. With RUNBOOK_NO_SKIP set, a skipped test is a failure.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// event is a line of go test -json (see `go doc test2json`) or go build -json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

func main() {
	// An interrupt from the terminal reaches go test by itself; we wait for it to clean up.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot run go test:", err)
		os.Exit(1)
	}
	skipped, readErr := report(os.Stdout, out)
	err = cmd.Wait()
	if len(skipped) > 0 {
		fmt.Printf("\nSkipped, %d:\n", len(skipped))
		for _, s := range skipped {
			fmt.Println("  " + s)
		}
	}
	switch {
	case readErr != nil:
		fmt.Fprintln(os.Stderr, "cannot read what go test says:", readErr)
		os.Exit(1)
	case err != nil:
		os.Exit(1)
	case len(skipped) > 0 && os.Getenv("RUNBOOK_NO_SKIP") != "":
		fmt.Println("Nothing may be skipped here.")
		os.Exit(1)
	}
}

// report prints what matters of a stream of events and returns the tests that were skipped, each with its reason.
func report(w io.Writer, r io.Reader) (skipped []string, err error) {
	said := map[string]*strings.Builder{} // by package and test, until it is known how the test ended
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				e = event{Action: "output", Output: line} // not of a test
			}
			id := e.Package + " " + e.Test
			switch {
			case e.Action == "build-output", e.Action == "output" && e.Test == "":
				if e.Output != "PASS\n" && !strings.HasPrefix(e.Output, "coverage:") {
					fmt.Fprint(w, e.Output)
				}
			case e.Action == "output":
				if said[id] == nil {
					said[id] = &strings.Builder{}
				}
				said[id].WriteString(e.Output)
			case e.Test == "":
			case e.Action == "fail":
				fmt.Fprint(w, text(said[id]))
				delete(said, id)
			case e.Action == "skip":
				skipped = append(skipped, id+": "+reason(text(said[id])))
				delete(said, id)
			case e.Action == "pass":
				delete(said, id)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return skipped, err
		}
	}
	for id, b := range said { // neither passed nor failed: the test's process died
		fmt.Fprintf(w, "%s did not end:\n%s", id, b)
	}
	return skipped, nil
}

func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// reason returns what a skipped test said, without the lines that go test adds.
func reason(output string) string {
	var said []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- SKIP") || line == "" {
			continue
		}
		said = append(said, line)
	}
	return strings.Join(said, " ")
}
