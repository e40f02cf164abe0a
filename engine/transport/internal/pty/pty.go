// Package pty opens pseudo terminals, for su, which reads its password from nothing else.
package pty

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open returns both ends of a new terminal. It does not echo and does not translate newlines on output, so that
// what a program writes comes out as it was.
func Open() (master, slave *os.File, err error) {
	// Opened by the os package, the master would go to the poller before it has a peer, which works for reading.
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	defer func() {
		if err != nil {
			_ = master.Close()
		}
	}()
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	var number int
	var callErr error
	err = raw.Control(func(fd uintptr) {
		if callErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); callErr == nil {
			number, callErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err == nil {
		err = callErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	fd := int(slave.Fd())
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		modes.Lflag &^= unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL
		modes.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(fd, unix.TCSETS, modes)
	}
	if err != nil {
		_ = slave.Close()
		return nil, nil, fmt.Errorf("cannot set a terminal's modes: %w", err)
	}
	return master, slave, nil
}
