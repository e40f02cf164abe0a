// Package acceptance drives the built program against real hosts, which package lab makes.
//
// Each archive under testdata is a script (see github.com/rogpeppe/go-internal/testscript for the language) with a lab of its own.
// At most two run at once. Besides the language's own commands a script has:
//
//	lab up HOST...                boot voms1, voms2, ui, stranger; write inventory.yml unless the archive has one
//	lab seed HOST                 create the service databases: two VOs and a file catalogue
//	lab exec HOST PROGRAM ARG...  run a program on a host from outside, not by way of the program under test
//	lab sql HOST STATEMENTS       the same for SQL; rows are lines with tabs
//	lab reboot HOST...            restart hosts, all at the same time
//	lab stop HOST                 also: crash, start, unplug, plug
//	lab fingerprint NAME HOST...  remember what there is on hosts
//	lab unchanged NAME            fail, saying what differs, unless they are still so
//	lab watch HOST STRING...      look every 10 ms for processes that show a string; HOST may be "controller"
//	lab unwatch                   stop looking, and fail if anything was seen
//	lab cert NAME DIR [expired]   sign a certificate for a host name, or for a person if there is a space in it, into DIR/cert.pem and
//	                              DIR/key.pem; or "forged": by somebody who only has the authority's name
//	runbook ARG...                the program under test, run as the controller (also as a program: exec runbook ... &)
//	exits CODE COMMAND ARG...     the program or command must end with this exit code
//	eventually COMMAND ARG...     repeat a command until it succeeds, for at most 30 s; the log says how long it took
//
// COMMAND is lab, runbook, or a program. On ui there is a program of ours, proxy, by which a user asks VOMS servers for proxies and
// knows whom the client asked (acceptance/lab/proxy.sh).
package acceptance
