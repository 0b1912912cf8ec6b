package main

import (
	"strconv"
	"time"
)

// reportEvery is the time between two reports.
const reportEvery = 100 * time.Millisecond

// meter collects events, and reports those of all organizations as one batch.
type meter struct {
	server *server
	// reportFor is how long one batch is retried; then its events are lost.
	reportFor time.Duration
	out       *output
	emitted   chan []map[string]any
}

func newMeter(server *server, reportFor time.Duration, out *output) *meter {
	emitted := make(chan []map[string]any, 1024)
	meter := &meter{server: server, reportFor: reportFor, out: out, emitted: emitted}
	go meter.run()
	return meter
}

func (m *meter) emit(events []map[string]any) { m.emitted <- events }

func (m *meter) run() {
	var gathered []map[string]any
	for range time.Tick(reportEvery) {
		for len(m.emitted) > 0 {
			gathered = append(gathered, <-m.emitted...)
		}
		if len(gathered) > 0 {
			m.out.say(m.report(gathered))
			gathered = nil
		}
	}
}

// report sends one batch until it is accepted or its time is over, and returns the event to report.
func (m *meter) report(events []map[string]any) map[string]any {
	pause := 50 * time.Millisecond
	for began := time.Now(); ; {
		request := map[string]any{"events": events}
		answer, header, err := m.server.call("sf.gateway.payment.v1.UsageService/Report", request)
		if err == nil {
			skipped := 0
			if told := header.Get("x-events-skipped"); len(told) == 1 {
				skipped, _ = strconv.Atoi(told[0])
			}
			answer["event"], answer["events"], answer["skipped"] = "reported", len(events), skipped
			return answer
		}
		if time.Since(began)+pause > m.reportFor {
			lost := refused(err)
			lost["event"], lost["events"] = "lost", len(events)
			return lost
		}
		time.Sleep(pause)
		pause *= 2
	}
}
