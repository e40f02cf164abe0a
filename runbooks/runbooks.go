// Package runbooks holds the runbooks that are shipped inside the program, each a folder with its books and templates.
package runbooks

import "embed"

// FS holds every shipped book as FOLDER/NAME.yml, with what it reads beside it.
//
//go:embed man06
var FS embed.FS
