package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// use is what has been used up to a moment; by difference, in a stretch.
type use struct {
	coordinatorUs, participantsUs, clientUs float64
	rssMiB                                  float64 // the most so far, not a difference
	appends, commands, bytes, fsyncs        float64
}

func (u use) minus(o use) use {
	return use{
		coordinatorUs: u.coordinatorUs - o.coordinatorUs, participantsUs: u.participantsUs - o.participantsUs, clientUs: u.clientUs - o.clientUs,
		rssMiB: u.rssMiB, appends: u.appends - o.appends, commands: u.commands - o.commands, bytes: u.bytes - o.bytes, fsyncs: u.fsyncs - o.fsyncs,
	}
}

func (u *use) add(o use) {
	u.coordinatorUs += o.coordinatorUs
	u.participantsUs += o.participantsUs
	u.clientUs += o.clientUs
	u.appends += o.appends
	u.commands += o.commands
	u.bytes += o.bytes
	u.fsyncs += o.fsyncs
	u.rssMiB = max(u.rssMiB, o.rssMiB)
}

func (u use) perTxn(n int) use {
	d := float64(n)
	return use{
		coordinatorUs: u.coordinatorUs / d, participantsUs: u.participantsUs / d, clientUs: u.clientUs / d, rssMiB: u.rssMiB,
		appends: u.appends / d, commands: u.commands / d, bytes: u.bytes / d, fsyncs: u.fsyncs / d,
	}
}

// usage reads the coordinator's meters and the processes' processor times, all nodes'
// together. A coordinator that is not ours tells its own processor time.
func (b *run) usage(ctx context.Context) (use, error) {
	var u use
	for i, url := range b.coord.urls {
		text, err := b.metrics(ctx, url)
		if err != nil {
			return use{}, err
		}
		of := use{
			appends: metric(text, "assent_log_appends_total"), bytes: metric(text, "assent_log_appended_bytes_total"),
			commands: metric(text, "assent_append_commands_sum"), fsyncs: metric(text, "assent_log_fsyncs_total"),
			coordinatorUs: 1e6 * metric(text, "process_cpu_seconds_total"), rssMiB: metric(text, "process_resident_memory_bytes") / (1 << 20),
		}
		if i < len(b.coord.pids) {
			if of.rssMiB, err = peakMiB(b.coord.pids[i]); err != nil {
				return use{}, err
			}
		}
		u.add(of)
	}
	var err error
	if u.participantsUs, err = b.work.cpuUs(); err != nil {
		return use{}, err
	}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return use{}, err
	}
	u.clientUs = float64(self.Utime.Nano()+self.Stime.Nano()) / 1000
	return u, nil
}

// metrics reads a node's meters.
func (b *run) metrics(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	status, text, err := b.do(req, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return nil, fmt.Errorf("read the coordinator's metrics: %w", err)
	}
	return text, nil
}

// metric is the value of a series without labels; 0 if it is not there.
func metric(text []byte, name string) float64 {
	at := bytes.Index(text, []byte("\n"+name+" "))
	if at < 0 {
		return 0
	}
	rest := text[at+len(name)+2:]
	if end := bytes.IndexByte(rest, '\n'); end >= 0 {
		rest = rest[:end]
	}
	v, err := strconv.ParseFloat(string(rest), 64)
	if err != nil {
		return 0
	}
	return v
}

// peakMiB is the most memory that another process ever had resident (proc(5)).
func peakMiB(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var kb float64
	_, rest, _ := bytes.Cut(text, []byte("\nVmHWM:"))
	if _, err := fmt.Sscan(string(rest), &kb); err != nil {
		return 0, fmt.Errorf("no VmHWM in the status of process %d: %w", pid, err)
	}
	return kb / 1024, nil
}

// cpuUs is the processor time of another process (proc(5)).
func cpuUs(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the first is field 3
	const ticksPerSecond = 100                                                // USER_HZ, fixed on Linux
	var ticks float64
	for _, i := range []int{11, 12} { // utime, stime
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return 0, err
		}
		ticks += v
	}
	return ticks * 1e6 / ticksPerSecond, nil
}
