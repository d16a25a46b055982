package lab

import "testing"

func TestInLazyMode(t *testing.T) {
	const set = "mode = \"fscache\"\n"
	for config, want := range map[string]string{
		"":                                   "\n[lazy]\n" + set,
		"[lazy]\nenabled = false\n":          "[lazy]\n" + set + "enabled = false\n",
		"a = 1\n[lazy]\nb = 2\n[keeper]\n":   "a = 1\n[lazy]\n" + set + "b = 2\n[keeper]\n",
		"[keeper]\npatience = \"1s\"\n":      "[keeper]\npatience = \"1s\"\n\n[lazy]\n" + set,
		"[conversion]\n\n[lazy]\nb = \"\"\n": "[conversion]\n\n[lazy]\n" + set + "b = \"\"\n",
	} {
		if got := inLazyMode(config, "fscache"); got != want {
			t.Errorf("%q became %q, want %q", config, got, want)
		}
		if got := inLazyMode(config, ""); got != config {
			t.Errorf("%q became %q though no mode was asked for", config, got)
		}
	}
}
