package transport

import (
	"context"
	"time"
)

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

// EndJob ends a job as an interrupt does.
func EndJob(ctx context.Context, r Runner, user, id string) error {
	return endJob(ctx, r, user, id, "cancel")
}
