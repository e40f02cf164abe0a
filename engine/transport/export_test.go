package transport

import "time"

// WithInterpreter makes a host use another sh.
func WithInterpreter(cfg Config, path string) Config {
	cfg.interpreter = path
	return cfg
}

// SetStartLimit shortens how long a shell may take to answer.
func SetStartLimit(d time.Duration) func() {
	old := startLimit
	startLimit = d
	return func() { startLimit = old }
}
