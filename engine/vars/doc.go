// Package vars turns the texts of a runbook into values: expressions, strings with holes, templates, and the layers of
// variables that they read.
//
// Everything is compiled once, when a book is loaded, against a Scope of declared names and types, so that an unknown
// name, a missing field or a condition that is not boolean is found before the first connection. What a host returns
// is data: nothing that an evaluation reads or makes is ever compiled (Compiled counts, for the test that proves it).
//
// The language is expr-lang's: its parser, type checker, operators and functions. This package walks the checked syntax
// tree itself instead of running expr's machine, because a runbook needs what that cannot give: names are looked up
// only when evaluation reaches them, a missing key is an error that names its neighbours (`?.` and `??` ask for leniency),
// what check mode cannot know spreads as *UnknownError unless the other side of && or || settles it, a secret cannot be
// looked into, and time and memory are bounded.
//
// # Texts
//
// `{{ expression }}` is a hole. A string that is one hole and nothing else keeps the value's type; any other becomes text:
// numbers and booleans print plainly, a list or map is an error (use join or toJSON), and so is nil. A text that a secret
// went into is a secret. `{{ "{{" }}` writes two braces.
//
// # Templates
//
// A template has the same holes, and tags on lines of their own, which vanish with their line:
//
//	{% for db in databases %}        a list; inside, loop.index (from 1), loop.first and loop.last
//	replicate-wild-do-table = {{ db }}.%
//	{% endfor %}
//	{% for key, value in options %}  a map, in the order of its keys
//	{% endfor %}
//	{% if tls %} … {% elif port == 3306 %} … {% else %} … {% endif %}
//	{# a comment #}
//
// A template always makes text.
package vars
