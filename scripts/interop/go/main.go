// Command plugin is a client on grpc-go that behaves like the session and metering plugins of streaming
// services in production. It sends no borrow id, looks only at the code of a keep-alive, sends each return
// once, and reports usage in unbounded batches. It retries each batch for six seconds, unless told otherwise.
//
// It reads one JSON command a line and answers each with one JSON line that carries the command's id. A
// line with "event" and without "id" is an event that the plugin reports to its service.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"
)

// command is one line of input.
type command struct {
	ID      int64            `json:"id"`
	Do      string           `json:"do"`
	Session string           `json:"session"`
	Key     string           `json:"key"`
	Max     int64            `json:"max"`
	Request map[string]any   `json:"request"`
	Events  []map[string]any `json:"events"`
}

// output writes lines, one at a time.
type output struct {
	lock    sync.Mutex
	encoder *json.Encoder
}

func (o *output) say(line map[string]any) {
	o.lock.Lock()
	defer o.lock.Unlock()
	if err := o.encoder.Encode(line); err != nil {
		fail("cannot write: %v", err)
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "plugin: "+format+"\n", arguments...)
	os.Exit(1)
}

func main() {
	var options options
	flag.StringVar(&options.address, "address", "", "host and port of the session server")
	flag.StringVar(&options.descriptors, "descriptors", "", "file with the descriptors of the protocol")
	flag.StringVar(&options.caFile, "ca-file", "", "certificate authority in PEM; without one there is no TLS")
	flag.StringVar(&options.apiKey, "api-key", "", "key of the indexer")
	flag.BoolVar(&options.gzip, "gzip", false, "compress every request")
	every := flag.Int64("keep-alive-ms", 1000, "time between two keep-alives of a session, in milliseconds")
	reportFor := flag.Int64("report-for-ms", 6000, "how long one batch is retried, in milliseconds; then its events are lost")
	flag.Parse()

	server, err := connect(options)
	if err != nil {
		fail("%v", err)
	}
	out := &output{encoder: json.NewEncoder(os.Stdout)}
	sessions := newSessions(server, time.Duration(*every)*time.Millisecond, out)
	meter := newMeter(server, time.Duration(*reportFor)*time.Millisecond, out)

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var command command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			fail("not a command: %v", err)
		}
		go func() {
			answer := run(command, server, sessions, meter)
			answer["id"] = command.ID
			out.say(answer)
		}()
	}
}

// run carries out one command and returns its answer, without the id.
func run(command command, server *server, sessions *sessions, meter *meter) map[string]any {
	switch command.Do {
	case "borrow session":
		return sessions.borrow(command.Request)
	case "borrow worker":
		return sessions.borrowWorker(command.Session, command.Request, command.Max)
	case "release worker":
		return sessions.releaseWorker(command.Session, command.Key)
	case "release session":
		return sessions.release(command.Session)
	case "report":
		meter.emit(command.Events)
		return map[string]any{}
	case "state":
		answer, _, err := server.call("sf.worker.v1.WorkerPool/WorkersState", command.Request)
		if err != nil {
			return refused(err)
		}
		return answer
	default:
		fail("no command is called %q", command.Do)
		return nil
	}
}
