package rmhttp

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// newTransport is a transport of the coordinator's own: no proxy from the
// environment, no decompression, no redirect (RoundTrip never follows one).
func newTransport(cfg Config) *http.Transport {
	dialer := &net.Dialer{
		Timeout:   cfg.DialTimeout,
		KeepAlive: 30 * time.Second,
		Control: func(_, address string, _ syscall.RawConn) error {
			return checkAddress(address, cfg.AllowedNetworks)
		},
	}
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        cfg.TLS,
		TLSHandshakeTimeout:    cfg.DialTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConns:           0, // bounded per host; hosts come from the registry
		MaxIdleConnsPerHost:    cfg.MaxIdleConns,
		IdleConnTimeout:        cfg.IdleConnTimeout,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// checkAddress decides on a resolved address just before the connect, which no
// spelling of an address and no second look-up of a name can avoid.
func checkAddress(address string, allowed []netip.Prefix) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	ip := ap.Addr().WithZone("").Unmap()
	if nat64.Contains(ip) { // the IPv4 address a gateway would connect to
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if len(allowed) == 0 {
		if ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
			return fmt.Errorf("address %s is not a participant's", ip)
		}
		return nil
	}
	for _, p := range allowed {
		if p.Contains(ip) {
			return nil
		}
	}
	return fmt.Errorf("address %s is outside the allowed networks", ip)
}
