package discovery

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Environment variables that say where the coordinator is, in this order; they count where
// nothing is configured.
const (
	EnvEndpoints = "ASSENT_ENDPOINTS"      // URLs, divided by commas
	EnvFile      = "ASSENT_ENDPOINTS_FILE" // path of a file of URLs; with EnvEndpoints: besides
	EnvURL       = "ASSENT_URL"            // URLs, divided by commas; without the other two
)

// DefaultEndpoint is where a coordinator on this machine listens.
const DefaultEndpoint = "http://127.0.0.1:7070"

const (
	maxEndpoints = 256
	maxFileBytes = 64 << 10
)

// Config of Nodes. Zero values take the defaults.
type Config struct {
	// Endpoints are base URLs of the REST API, each entry one or several divided by commas. A
	// host name stands for all its addresses.
	Endpoints []string
	// File has one URL on a line; what follows a # is a comment. It is read again when a
	// node fails. Without Endpoints and File the environment says where the nodes are.
	File string
	// Resolve returns the addresses of a host. Default: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]string, error)
	TLS     *tls.Config // for https; default: the system's authorities
	// HTTPClient makes the requests as they are, if it is set: then host names, time-outs of
	// dialling and TLS are its business. Its Timeout must be zero: contexts bound them.
	HTTPClient *http.Client
	// Static: nothing is learned from GET /v1/cluster. For who asks once.
	Static bool
	Logger *slog.Logger // of nodes that fail and come back, at debug level; default: none
}

// Split divides a list of URLs at its commas.
func Split(list string) (urls []string) {
	for u := range strings.SplitSeq(list, ",") {
		if u = strings.TrimSpace(u); u != "" {
			urls = append(urls, u)
		}
	}
	return urls
}

// Check returns an error if list is not URLs of nodes divided by commas.
func Check(list string) error {
	urls := Split(list)
	if len(urls) == 0 {
		return errors.New("no URL: write http://host:port")
	}
	for _, u := range urls {
		if _, err := parse(u); err != nil {
			return err
		}
	}
	return nil
}

// parse checks the base URL of a node.
func parse(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not a URL such as http://127.0.0.1:7070", base)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

// complete fills in what is not configured.
func (c *Config) complete() error {
	var list []string
	for _, e := range c.Endpoints {
		list = append(list, Split(e)...)
	}
	if len(list) == 0 && c.File == "" {
		list, c.File = Split(os.Getenv(EnvEndpoints)), os.Getenv(EnvFile)
	}
	if len(list) == 0 && c.File == "" {
		list = Split(os.Getenv(EnvURL))
	}
	if len(list) == 0 && c.File == "" {
		list = []string{DefaultEndpoint}
	}
	c.Endpoints = list
	if _, err := c.configured(); err != nil {
		return err
	}
	if c.Resolve == nil {
		c.Resolve = net.DefaultResolver.LookupHost
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// configured is the list and what the file has now.
func (c *Config) configured() ([]*url.URL, error) {
	list := c.Endpoints
	if c.File != "" {
		lines, err := readFile(c.File)
		if err != nil {
			return nil, err
		}
		list = append(list[:len(list):len(list)], lines...)
	}
	var urls []*url.URL
	for _, e := range list {
		u, err := parse(e)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	switch {
	case len(urls) == 0:
		return nil, fmt.Errorf("the file %s names no node", c.File)
	case len(urls) > maxEndpoints:
		return nil, fmt.Errorf("%d URLs, more than the limit of %d", len(urls), maxEndpoints)
	}
	return urls, nil
}

func readFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	if info, err := f.Stat(); err != nil || info.Size() > maxFileBytes {
		return nil, errors.Join(err, fmt.Errorf("%s: not a file of at most %d bytes", path, maxFileBytes))
	}
	var lines []string
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		line, _, _ := strings.Cut(scan.Text(), "#")
		lines = append(lines, Split(line)...)
	}
	return lines, scan.Err()
}

// dialTimeout is what a host that is not there costs, once.
const dialTimeout = time.Second

// transport is for all nodes, or for the one at an address: the host of its URL is what
// TLS and the Host header name, wherever it is dialled.
func (c *Config) transport(host, address string) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: c.TLS.Clone(),
		ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}
	if address != "" {
		t.DialContext = func(ctx context.Context, network, to string) (net.Conn, error) {
			if to == host { // else it is a proxy
				to = address
			}
			return dialer.DialContext(ctx, network, to)
		}
	}
	return t
}

// noRedirects: whoever redirects is not a coordinator.
func noRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
