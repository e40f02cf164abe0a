package transport

import (
	"context"
	"errors"
)

func newSSH(ctx context.Context, cfg Config) (*host, error) {
	return nil, errors.New("not yet")
}
