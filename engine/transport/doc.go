// Package transport runs commands on hosts, over SSH or locally, and connects from there to networks and sockets.
//
// A Conn is one SSH connection and, on it, one long-lived sh per user, started when a user is first needed, so that
// becoming root costs once per host and not once per command. The sh reads requests from its standard input as
// ordinary sh text: content (scripts, input) is stored by the shell's own printf as plain ASCII in files of a private
// directory, the command runs in a subshell with its streams in files beside them, and the reply is those files, each
// closed by a random word that the request named and the command never saw. So any byte passes, a daemon that keeps
// its streams open holds nothing up, nothing is in an argument list, and no process is started but the command's own
// and one for each stream that has something to say. Requests are written without waiting for replies: what is
// in flight together shares a round trip.
//
// A request ends with a line that is complete only with its last byte: what was cut off is not run. A reply that does
// not come whole is an UnreachableError, never a result.
//
// Data too large to hold gets a session of its own, started the same way: the sh reads its script, says that it is
// ready, and what follows on its input belongs to the command. Commands are ended from such a session, too, so that
// neither the command nor the shell has to listen. So are sockets opened as another user, through a relay.
//
// What must not end with the connection is a job: a process of its own under a directory of the host, which is asked how it gets
// on with short commands and found again by its ID.
//
// The same text runs over a local sh. The files: host.go is Conn; shell.go the framed shell; stream.go sessions of their
// own and how commands are ended; become.go the ways to another user; process.go what a link to a host has to offer;
// ssh.go and local.go the two that there are; route.go, keys.go and hostkey.go the way there; dial.go connections; lock.go
// who may work on the host; job.go, file.go and quote.go what stands on top.
package transport
