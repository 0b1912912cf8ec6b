package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// deadline is the longest wait for one answer. A healthy server needs milliseconds.
const deadline = 15 * time.Second

// options say how to reach the server.
type options struct {
	address, descriptors, caFile, apiKey string
	gzip                                 bool
}

// server calls methods by name, with messages written as JSON objects.
type server struct {
	connection *grpc.ClientConn
	files      *protoregistry.Files
	apiKey     string
}

func connect(options options) (*server, error) {
	raw, err := os.ReadFile(options.descriptors)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("%s: %w", options.descriptors, err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if options.caFile != "" {
		if transport, err = credentials.NewClientTLSFromFile(options.caFile, ""); err != nil {
			return nil, err
		}
	}
	// A server that restarts accepts again soon; the default pause is up to two minutes.
	retry := grpc.ConnectParams{MinConnectTimeout: time.Second}
	retry.Backoff.BaseDelay = 20 * time.Millisecond
	retry.Backoff.Multiplier = 1.6
	retry.Backoff.MaxDelay = 200 * time.Millisecond
	dial := []grpc.DialOption{grpc.WithTransportCredentials(transport), grpc.WithConnectParams(retry)}
	if options.gzip {
		dial = append(dial, grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	connection, err := grpc.NewClient(options.address, dial...)
	return &server{connection, files, options.apiKey}, err
}

// call calls `package.Service/Method`. It returns the answer and its initial metadata.
func (s *server) call(path string, request map[string]any) (map[string]any, metadata.MD, error) {
	name := protoreflect.FullName(strings.ReplaceAll(path, "/", "."))
	descriptor, err := s.files.FindDescriptorByName(name)
	if err != nil {
		fail("%s: %v", path, err)
	}
	method := descriptor.(protoreflect.MethodDescriptor)
	written, err := json.Marshal(request)
	if err != nil {
		fail("%v", err)
	}
	sent, received := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if err := protojson.Unmarshal(written, sent); err != nil {
		fail("%s: %v", path, err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if s.apiKey != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", s.apiKey)
	}
	var header metadata.MD
	if err := s.connection.Invoke(ctx, "/"+path, sent, received, grpc.Header(&header)); err != nil {
		return nil, header, err
	}
	read, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(received)
	if err != nil {
		fail("%v", err)
	}
	var answer map[string]any
	if err := json.Unmarshal(read, &answer); err != nil {
		fail("%v", err)
	}
	return answer, header, nil
}

// refused is the answer to a command whose call failed.
func refused(err error) map[string]any {
	told := status.Convert(err)
	return map[string]any{"code": told.Code().String(), "error": told.Message()}
}
