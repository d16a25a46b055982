package snapshotter

const childRoot = "EROFS_TEST_CHILD_ROOT"

func childMain(root string) {}
