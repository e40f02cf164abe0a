// Package lab makes real hosts on one machine, so that nothing in an acceptance test has to be faked.
//
// A host is a systemd-nspawn container: Debian with systemd as PID 1, its own address, sshd, a packet filter
// that ends in REJECT, a MariaDB server, a host certificate and a hashed directory of trusted authorities. It
// is up in about two seconds, survives a reboot with its state, and can be crashed or unplugged.
//
// A lab is one network namespace with a bridge in it. Hosts are plugged into that bridge; the controller, which is the
// program under test, runs in the namespace too (Lab.Command). Nothing listens outside it, there is no
// way out of it, and any number of labs run side by side with the same addresses: the lab's id is part of the name of
// its namespace (rb-ID), machines (rb-ID-HOST), control groups (runbook-lab-ID) and directory.
//
//	voms1     10.77.0.1    where a service and its database live
//	voms2     10.77.0.2    where they shall be copied to
//	ui        10.77.0.3    a third host of the same site, where users work: Alice Researcher has her certificate in /home/alice/.globus
//	stranger  10.77.0.4    another one, which nobody invited
//	          10.77.0.254  the controller
//
// All hosts share one image, built once per recipe and kept in Cache(); each has an overlay over it whose upper
// directory lives as long as the lab. The image has two lists of packages: those installed, and those a
// runbook will install, which wait in a package repository inside the image (see Installed and Available).
//
// Logins: root (bash), ops (bash, sudo without a password) and opspw (dash, sudo with OpsPassword), all by
// the lab's own key, with host keys that the lab made and wrote into its known_hosts.
//
// A lab belongs to the process that made it and holds a lock while that process lives. Whoever makes the next lab first
// sweeps away those whose owner died. Keep gives a lab up for adoption: it then stays until
// somebody calls Down, from any process (the program labctl does both).
//
// Exec, Watch and Fingerprint look at a host from outside, past sshd. They are for assertions; the program under
// test has to come in through the front door.
package lab
