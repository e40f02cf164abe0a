// Package report is the one stream in which a run tells what happens, and the forms it is shown in.
//
// The engine hands every Event to a Reporter, in order. Text tells it to a person, on a terminal or in a log; JSON
// writes the events as they are. Secrets are masked before an event gets here; what a host printed is not trusted here
// either: nothing that could act on a terminal passes Clean.
package report
