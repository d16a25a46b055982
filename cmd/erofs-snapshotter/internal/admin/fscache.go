package admin

// Fscache is the kernel's cache of files, over which lazy layers are mounted if the kernel asks for their data in that way. Counts begin with the
// daemon.
type Fscache struct {
	// Domain is the domain_id of all mounts, Dir where the kernel keeps its files.
	Domain string `json:"domain"`
	Dir    string `json:"dir"`
	// Layers is how many are mounted, and Files how many of their files the kernel has open.
	Layers int `json:"layers"`
	Files  int `json:"files"`
	// Reads counts the kernel's requests, Failed those that were answered without all of the data, and NoRoom those of them whose data the kernel did
	// not take because the disk is full, or nearly so.
	Reads  int64 `json:"reads"`
	Failed int64 `json:"failed"`
	NoRoom int64 `json:"noRoom"`
	// CopiedBytes is what the kernel got. It lies on the disk a second time until the layer is not mounted any more; CulledBytes is what was freed then.
	CopiedBytes int64 `json:"copiedBytes"`
	CulledBytes int64 `json:"culledBytes"`
	// WantsSpace says that less of the disk is free than fscache.brun says, after it was less than fscache.bcull.
	WantsSpace bool `json:"wantsSpace,omitempty"`
}
