package main

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const pool = "sf.worker.v1.WorkerPool/"

// sessions are the held sessions, by key.
type sessions struct {
	server *server
	every  time.Duration
	out    *output

	lock sync.Mutex
	held map[string]*session
}

// session is a held session and its workers.
type session struct {
	request map[string]any
	stop    chan struct{}

	lock    sync.Mutex
	workers map[string]bool
}

func newSessions(server *server, every time.Duration, out *output) *sessions {
	return &sessions{server: server, every: every, out: out, held: map[string]*session{}}
}

func (s *sessions) borrow(request map[string]any) map[string]any {
	answer, _, err := s.server.call(pool+"BorrowWorker", request)
	if err != nil {
		return refused(err)
	}
	switch answer["status"] {
	case "borrowed":
		key := answer["worker_key"].(string)
		held := &session{request: request, stop: make(chan struct{}), workers: map[string]bool{}}
		s.lock.Lock()
		s.held[key] = held
		s.lock.Unlock()
		go s.keepAlive(key, held)
		return map[string]any{"session": key}
	case "resource_exhausted":
		max := maximum(answer)
		// The text contains the maximum twice. It is all that a user sees.
		text := fmt.Sprintf("Concurrent stream limit exceeded (active sessions: %s/%s)", max, max)
		return map[string]any{"code": codes.ResourceExhausted.String(), "error": text}
	default:
		return map[string]any{"code": codes.Internal.String(), "error": fmt.Sprint("status ", answer["status"])}
	}
}

// maximum is max_workers of the answer's state, as text.
func maximum(answer map[string]any) string {
	state, _ := answer["worker_state"].(map[string]any)
	return fmt.Sprint(state["max_workers"])
}

// borrowWorker answers "busy" if the caller would retry. After any error its job fails for good.
func (s *sessions) borrowWorker(key string, request map[string]any, max int64) map[string]any {
	session := s.find(key)
	wanted := map[string]any{"max_worker_for_trace_id": max}
	for _, from := range []map[string]any{session.request, request} {
		for field, value := range from {
			wanted[field] = value
		}
	}
	answer, _, err := s.server.call(pool+"BorrowWorker", wanted)
	if err != nil {
		return refused(err)
	}
	switch answer["status"] {
	case "borrowed":
		worker := answer["worker_key"].(string)
		session.lock.Lock()
		session.workers[worker] = true
		session.lock.Unlock()
		return map[string]any{"worker": worker}
	case "resource_exhausted":
		return map[string]any{"busy": maximum(answer)}
	default:
		return map[string]any{"code": codes.Internal.String(), "error": fmt.Sprint("status ", answer["status"])}
	}
}

func (s *sessions) releaseWorker(key, worker string) map[string]any {
	session := s.find(key)
	session.lock.Lock()
	delete(session.workers, worker)
	session.lock.Unlock()
	return s.giveBack(worker)
}

func (s *sessions) release(key string) map[string]any {
	session := s.find(key)
	s.lock.Lock()
	delete(s.held, key)
	s.lock.Unlock()
	close(session.stop)
	return s.giveBack(key)
}

// giveBack sends one return and ignores the result.
func (s *sessions) giveBack(key string) map[string]any {
	request := map[string]any{"worker_key": key, "minimal_worker_life_duration": "0s"}
	answer, _, err := s.server.call(pool+"ReturnWorker", request)
	if err != nil {
		return refused(err)
	}
	return answer
}

func (s *sessions) find(key string) *session {
	s.lock.Lock()
	defer s.lock.Unlock()
	session := s.held[key]
	if session == nil {
		fail("no session is held under that key")
	}
	return session
}

// keepAlive keeps the session and its workers alive, one after another, until it is released or denied.
func (s *sessions) keepAlive(key string, held *session) {
	ticks := time.NewTicker(s.every)
	defer ticks.Stop()
	for {
		select {
		case <-held.stop:
			return
		case <-ticks.C:
		}
		held.lock.Lock()
		keys := []string{key}
		for worker := range held.workers {
			keys = append(keys, worker)
		}
		held.lock.Unlock()
		for _, one := range keys {
			request := map[string]any{"worker_key": one, "api_key_id": held.request["api_key_id"]}
			// The status of an answer is ignored, and so is every code except these two.
			_, _, err := s.server.call(pool+"KeepAlive", request)
			code := status.Code(err)
			if code == codes.PermissionDenied || code == codes.ResourceExhausted {
				ended := refused(err)
				ended["event"], ended["session"] = "ended", key
				s.out.say(ended)
				return
			}
		}
	}
}
