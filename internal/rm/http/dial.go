package rmhttp

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// newDialer connects to participants only, whatever a name resolves to.
func newDialer(cfg Config) net.Dialer {
	return net.Dialer{
		Timeout:   cfg.DialTimeout,
		KeepAlive: 30 * time.Second,
		Control: func(_, address string, _ syscall.RawConn) error {
			return checkAddress(address, cfg.AllowedNetworks)
		},
	}
}

// asciiHost is a host name as DNS knows it.
func asciiHost(host string) (string, error) {
	for i := range len(host) {
		if host[i] >= utf8.RuneSelf {
			return idna.Lookup.ToASCII(host)
		}
	}
	return host, nil
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
