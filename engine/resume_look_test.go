package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestResumeLooksAgain guards that a failure which rests on what was found can be mended: what was only looked at, and no change may rest
// upon, is looked at again. What a change may rest upon is remembered.
func TestResumeLooksAgain(t *testing.T) {
	const look = `      - name: look
        command: {shell: 'cat {{ root }}/state', read: true}
        register: found
`
	const judge = `      - name: judge
        assert: {that: found.stdout == "good"}
`
	const note = `      - name: note
        command: {shell: 'echo {{ found.stdout }} >>{{ root }}/log.{{ inventory_hostname }}'}
`
	for _, c := range []struct {
		name, tasks string
		failures    int    // after somebody has mended it
		log         string // of each host
	}{
		{"nothing rests upon it", look + judge, 0, ""},
		{"a change before it", strings.ReplaceAll(note, "{{ found.stdout }}", "noted") + look + judge, 0, "noted\n"},
		{"a change rests upon it", look + note + judge, 2, "bad\n"},
		{"another host's change is behind it", `      - name: never
        when: inventory_hostname == "b"
        command: {shell: 'echo begun >>{{ root }}/log.b'}
` + look + `      - name: judge
        when: inventory_hostname == "a"
        assert: {that: found.stdout == "good"}
      - name: note
        when: inventory_hostname == "b"
        command: {shell: 'echo {{ found.stdout }} >>{{ root }}/log.b'}
      - name: end
        assert: {that: 'found.stdout == (inventory_hostname == "a" ? "good" : "bad")'}
`, 0, "begun\nbad\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newResumable(t, resumeHead+c.tasks)
			state := filepath.Join(r.root, "state")
			write := func(text string) {
				if err := os.WriteFile(state, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("bad")
			if lines, s := r.run(t, nil); len(s.Failures) == 0 {
				t.Fatalf("nothing failed:\n%s", lines)
			}
			write("good")
			if lines, s := r.run(t, nil); len(s.Failures) != c.failures {
				t.Errorf("%d failures, want %d:\n%s", len(s.Failures), c.failures, lines)
			}
			if got := r.read("log.b"); got != c.log {
				t.Errorf("b's log: %q, want %q", got, c.log)
			}
		})
	}
}
