// A small gateway for OpenAI-compatible APIs that asks policyd about every request before it forwards it.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	policy "example/gateway/stubs/policyd/v1"
)

//go:generate buf generate

const (
	// policyd reads 4 MiB of a body, and accepts no larger message; headers need room in it, too.
	maxBody = 4<<20 - 64<<10
	// A policyd that is being replaced closes its connections: the call is tried again within the deadline,
	// at each of several addresses in turn.
	calls = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{
		"name": [{"service": "policyd.v1.PolicyService"}],
		"retryPolicy": {
			"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}]}`
)

// With these, a gateway notices after 12 s, not after minutes, that policyd has vanished, and reconnects.
var alive = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second, PermitWithoutStream: true}

// By default, Go's pause between two connections grows to two minutes.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: time.Second,
}

type gateway struct {
	policyd       policy.PolicyServiceClient
	policyTimeout time.Duration
	upstream      *url.URL
	proxy         *httputil.ReverseProxy
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where clients ask")
	policyd := flag.String("policyd", "127.0.0.1:50051", "where policyd answers gRPC")
	timeout := flag.Int("policy-timeout", 1, "how many seconds to wait for a decision")
	upstream := flag.String("upstream", "https://api.openai.com", "where allowed requests go")
	flag.Parse()
	if err := serve(*listen, *policyd, time.Duration(*timeout)*time.Second, *upstream); err != nil {
		log.Fatal(err)
	}
}

func serve(listen, policyd string, timeout time.Duration, upstream string) error {
	target, err := url.Parse(upstream)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(policyd,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(calls),
		grpc.WithKeepaliveParams(alive), grpc.WithConnectParams(reconnect))
	if err != nil {
		return err
	}
	defer connection.Close()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           newGateway(policy.NewPolicyServiceClient(connection), timeout, target),
		ReadHeaderTimeout: 10 * time.Second,
	}
	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(stopped, func() { server.Shutdown(context.Background()) })
	fmt.Printf("gateway is ready: http://%s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func newGateway(policyd policy.PolicyServiceClient, timeout time.Duration, upstream *url.URL) *gateway {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // Answers go back unchanged.
	g := &gateway{policyd: policyd, policyTimeout: timeout, upstream: upstream}
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		ModifyResponse: allowOrigin,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			log.Printf("no answer from upstream: %v", err)
			answerError(w, http.StatusBadGateway, "server_error", "The upstream API cannot be reached. Try again")
		},
		FlushInterval: -1, // Streams go on chunk by chunk.
		Transport:     transport,
	}
	return g
}

type upstreamPath struct{} // The key of the path to send upstream in a request's context.

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodOptions:
		answer(w, http.StatusOK, "*, Authorization", []byte("{}"))
		return
	case strings.Contains(strings.ToLower(r.Header.Get("Upgrade")), "websocket"):
		// After a 426, clients that also speak HTTP try it at once.
		w.Header().Set("Upgrade", "HTTP/1.1")
		w.Header().Set("Connection", "Upgrade")
		answerError(w, http.StatusUpgradeRequired, "invalid_request", "No policy can see into WebSockets. Ask over HTTP")
		return
	case !strings.HasPrefix(r.RequestURI, "/"):
		answerError(w, http.StatusBadRequest, "invalid_request", "Send a path that begins with /")
		return
	}
	begun, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		answerError(w, http.StatusBadRequest, "invalid_request", "The body is not as its headers say")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), g.policyTimeout)
	decided, err := g.policyd.Evaluate(ctx, g.describe(r, begun))
	cancel()
	switch {
	case err != nil:
		// Fail closed: without a decision nothing goes upstream.
		log.Printf("no decision: %v", err)
		w.Header().Set("Retry-After", "1")
		answerError(w, http.StatusServiceUnavailable, "server_error", "The policy service gave no decision. Try again")
	case decided.Decision == policy.Decision_DECISION_ALLOW:
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(begun), r.Body))
		keepEndToEnd(r.Header)
		path := context.WithValue(r.Context(), upstreamPath{}, decided.UpstreamPath)
		g.proxy.ServeHTTP(w, r.WithContext(path))
	default:
		// A client that is still sending would not read the answer.
		io.CopyN(io.Discard, r.Body, maxBody)
		deny(w, decided.Denial, decided.DecisionId)
	}
}

// absolute is the target as it goes upstream: with the upstream's own path before it.
func (g *gateway) absolute(target string) string {
	// Go's net/url takes two slashes for the beginning of a host.
	return strings.TrimSuffix(g.upstream.Path, "/") + "/" + strings.TrimLeft(target, "/")
}

// Besides its own headers, policyd reads those that describe the body, name the end user or turn another method into a POST.
var read = regexp.MustCompile(`(?i)^(content-(type|encoding)|openai-safety-identifier|x[-_]http[-_]method([-_]override)?|x[-_]method[-_]override)$`)

// describe makes the descriptor of a request, with its body, which policyd reads, and the path that goes upstream.
func (g *gateway) describe(r *http.Request, body []byte) *policy.EvaluateRequest {
	asked := &policy.EvaluateRequest{
		Method: r.Method, Path: g.absolute(r.RequestURI), UserAgent: r.UserAgent(), IdempotencyKey: newKey(),
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		asked.SourceIp = host
	}
	for name, values := range r.Header {
		if isOurs(name) || read.MatchString(name) {
			for _, value := range values {
				asked.Headers = append(asked.Headers, &policy.Header{Name: name, Value: value})
			}
		}
	}
	if len(body) > maxBody {
		asked.UserState = policy.UserState_USER_STATE_TOO_LARGE
	} else {
		asked.RawBody = &policy.RawBody{Content: body}
	}
	return asked
}

// newKey makes a key that each attempt at a call repeats, so that policyd decides and logs it once.
func newKey() string {
	var random [10]byte
	rand.Read(random[:])
	return fmt.Sprintf("%012x%x", time.Now().UnixMilli(), random)
}

// isOurs reports whether a header is policyd's, or a server may take it for one of them.
func isOurs(header string) bool {
	return strings.HasPrefix(dashed(header), "x-usagepanda-")
}

// dashed is a header's name as servers read it that take an underscore for a dash.
func dashed(header string) string {
	return strings.ReplaceAll(strings.ToLower(header), "_", "-")
}

// keepEndToEnd keeps the headers by which policyd, or the upstream, reads a request, though the client's
// Connection header names them, and asks the upstream for no other protocol.
func keepEndToEnd(header http.Header) {
	var kept []string
	for _, value := range header["Connection"] {
		for _, name := range strings.Split(value, ",") {
			switch name = textproto.TrimString(name); strings.ToLower(name) {
			case "authorization", "content-encoding", "content-length", "content-type", "openai-safety-identifier", "upgrade":
			default:
				kept = append(kept, name)
			}
		}
	}
	header.Set("Connection", strings.Join(kept, ","))
	header.Del("Upgrade")
	header.Del("Http2-Settings")
}

// rewrite sends a request upstream with the path by which policyd decided, and otherwise unchanged.
func (g *gateway) rewrite(r *httputil.ProxyRequest) {
	r.SetURL(g.upstream)
	path, query, hasQuery := strings.Cut(r.In.RequestURI, "?")
	path = g.absolute(path)
	if canonical := r.In.Context().Value(upstreamPath{}).(string); canonical != "" {
		path = canonical
	}
	r.Out.URL = &url.URL{
		Scheme: g.upstream.Scheme, Host: g.upstream.Host,
		Opaque:   path, // net/url does not respell this.
		RawQuery: query, ForceQuery: hasQuery,
	}
	for name := range r.Out.Header {
		if isOurs(name) {
			r.Out.Header.Del(name)
		}
	}
}

// allowOrigin lets browsers read the upstream's answer.
func allowOrigin(r *http.Response) error {
	if r.Header.Get("Access-Control-Allow-Origin") == "" {
		r.Header.Set("Access-Control-Allow-Origin", "*")
	}
	return nil
}

// deny answers with policyd's denial, byte for byte.
func deny(w http.ResponseWriter, denial *policy.Denial, decision string) {
	w.Header().Set("X-Request-Id", decision)
	for _, header := range denial.Headers {
		w.Header().Add(header.Name, header.Value)
	}
	w.WriteHeader(int(denial.HttpStatus))
	w.Write(denial.Body)
}

// answerError answers with an error of this gateway, in the shape of OpenAI's errors.
func answerError(w http.ResponseWriter, status int, kind, message string) {
	body := fmt.Sprintf(`{"error":{"message":"Usage Panda: %s","type":"%s","param":null,"code":null}}`, message, kind)
	answer(w, status, "*", []byte(body))
}

func answer(w http.ResponseWriter, status int, allowedHeaders string, body []byte) {
	w.Header().Set("Access-Control-Allow-Headers", allowedHeaders)
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Access-Control-Allow-Methods", "OPTIONS,POST,GET")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}
