package lab

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Each way to cut a link shows to both ends what it says, after the bytes that were asked for, and a new connection passes.
func TestLink(t *testing.T) {
	need(t)
	l, err := New(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	if err := l.Up(t.Context(), "voms1"); err != nil {
		t.Fatal(err)
	}
	h := l.Host("voms1")
	const hello = "SSH-2.0-test\r\n"
	for _, cut := range Cuts {
		t.Run(string(cut), func(t *testing.T) {
			k, err := l.Link(h)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			// The host's greeting, ours, and 10 bytes of what it says then.
			conn, err := l.Dial(t.Context(), "tcp", k.Address+":22")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			in := bufio.NewReader(conn)
			banner, err := in.ReadString('\n')
			if err != nil || !strings.HasPrefix(banner, "SSH-2.0") || k.Passed() != int64(len(banner)) {
				t.Fatalf("%q, %v, %d bytes", banner, err, k.Passed())
			}
			k.CutAfter(int64(len(hello))+10, cut)
			if _, err := io.WriteString(conn, hello); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(in)
			if cut != Reset && len(rest) != 10 || k.Passed() != int64(len(banner)+len(hello)+10) {
				t.Errorf("%d bytes arrive, %d passed", len(rest), k.Passed())
			}
			switch cut {
			case Finish, HalfController:
				if err != nil {
					t.Errorf("the controller gets %v, not an end", err)
				}
			case Reset:
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the controller gets %v", err)
				}
			default:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the controller gets %v", err)
				}
			}
			// Of a connection that it knows to have ended the host's sshd has nothing left after a moment.
			const theirs = `for i in $(seq 30); do n=$(ss -Htn state established sport = :22 | wc -l); [ $n != $0 ] || break; sleep 0.1; done; echo $n`
			want := map[Cut]string{HalfController: "1", Drop: "1"}[cut]
			if want == "" {
				want = "0"
			}
			if n, err := h.Exec(t.Context(), "sh", "-c", theirs, want); err != nil || strings.TrimSpace(n) != want {
				t.Errorf("the host has %s connections, want %s (%v)", strings.TrimSpace(n), want, err)
			}
			if _, was := k.WasCut(); !was {
				t.Error("it was not cut")
			}
			again, err := l.Dial(t.Context(), "tcp", k.Address+":22")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			_ = again.SetDeadline(time.Now().Add(5 * time.Second))
			if line, err := bufio.NewReader(again).ReadString('\n'); err != nil || line != banner {
				t.Errorf("a new connection gets %q, %v", line, err)
			}
		})
	}
}
