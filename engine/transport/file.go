package transport

import "context"

// Runner is what the file functions need: a Conn, or a host that adds its user and environment.
type Runner interface {
	Run(ctx context.Context, c Cmd) (Output, error)
}

// FileInfo is what a host says of a path. The zero value means that nothing is there.
type FileInfo struct {
	Kind         string // "" (absent), "file", "directory", "link", "other"
	Mode         uint32 // permission bits, setuid, setgid and sticky
	Owner, Group string // names, or numbers where the host knows no name
	Size         int64
	Target       string // of a link
	SHA256       string // of a regular file, hexadecimal, when asked for
}

// Exists reports whether anything is at the path.
func (i FileInfo) Exists() bool { return i.Kind != "" }

// FileWrite says how WriteFile leaves a file.
type FileWrite struct {
	Path         string
	Content      []byte
	Mode         uint32 // 0: the mode of the file that is replaced, else 0644
	Owner, Group string // "": the owner and group of the file that is replaced, else the writing user's
	Backup       bool   // keep the old content beside it as PATH.YYYYMMDDTHHMMSS~
	// Validate is run before the rename as arguments with %s replaced by the temporary file's path; a non-zero exit
	// leaves the old file as it was.
	Validate []string
}
