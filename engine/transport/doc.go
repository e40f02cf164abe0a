// Package transport runs commands on hosts, over SSH or locally.
package transport
