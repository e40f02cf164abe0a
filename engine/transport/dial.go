package transport

import (
	"context"
	"errors"
	"net"
)

func (h *host) Dial(ctx context.Context, user, network, addr string) (net.Conn, error) {
	return nil, errors.New("not yet")
}
