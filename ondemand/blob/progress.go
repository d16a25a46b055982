package blob

// Progress says how far a blob is filled. Bytes are those of extents: what no extent covers needs nobody to fetch it.
type Progress struct {
	Extents int
	Bytes   int64
	// Present extents may be read now, durable ones after a power cut too.
	PresentExtents, DurableExtents int
	PresentBytes, DurableBytes     int64
}

// Percent is how much is present, from 0 to 100; 100 is said of a blob only that has everything.
func (p Progress) Percent() int {
	if p.PresentExtents == p.Extents {
		return 100
	}
	return min(99, int(float64(p.PresentBytes)/float64(p.Bytes)*100))
}

// Progress returns how far the blob is filled.
func (b *Blob) Progress() Progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.progress
}

// Map divides the data blob into cells of the same length and returns how much of each is present, from 0 to 1. A cell that no extent
// reaches is 1. It reads the whole table.
func (b *Blob) Map(cells int) ([]float64, error) {
	covered, present := make([]float64, cells), make([]float64, cells)
	cellBytes := float64(b.Size()) / float64(cells)
	for first := 0; first < b.Count(); first += pageEntries {
		list, err := b.Extents(first, min(first+pageEntries, b.Count()))
		if err != nil {
			return nil, err
		}
		for i, e := range list {
			spread(covered, cellBytes, e)
			if b.Present(first + i) {
				spread(present, cellBytes, e)
			}
		}
	}
	for c := range present {
		if covered[c] == 0 {
			present[c] = 1
		} else {
			present[c] /= covered[c]
		}
	}
	return present, nil
}

// spread adds the bytes of an extent to the cells that it reaches.
func spread(cells []float64, cellBytes float64, e Extent) {
	from, to := float64(e.Offset)/cellBytes, float64(e.End())/cellBytes
	for c := int(from); c < len(cells) && float64(c) < to; c++ {
		cells[c] += min(to, float64(c+1)) - max(from, float64(c))
	}
}
