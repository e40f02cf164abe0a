package main

import (
	"fmt"
	"io"

	"github.com/sirupsen/logrus"

	"runbook/engine/report"
	"runbook/engine/secret"
)

type logger = logrus.Logger

// newLogger writes diagnostics to w: warnings, with -v what is done, with -vv connections too.
func newLogger(w io.Writer, verbose int, masker *secret.Masker) *logger {
	log := logrus.New()
	log.SetOutput(w)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true, TimestampFormat: "15:04:05.000"})
	log.SetLevel([]logrus.Level{logrus.WarnLevel, logrus.InfoLevel, logrus.DebugLevel}[min(verbose, 2)])
	log.AddHook(maskHook{masker})
	return log
}

// maskHook hides secrets and makes control characters visible in every entry, before it is formatted.
type maskHook struct{ masker *secret.Masker }

func (maskHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h maskHook) Fire(entry *logrus.Entry) error {
	entry.Message = report.Clean(h.masker.Mask(entry.Message))
	for key, value := range entry.Data {
		entry.Data[key] = report.Clean(h.masker.Mask(fmt.Sprint(value)))
	}
	return nil
}
