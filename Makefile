# SPDX-License-Identifier: MIT
#
# Two commands: `make check` and `make demo`. Each sets up what it needs (packages, as root on Debian; WPT_SETUP=0 forbids that).
# Every .c file is found by its folder; a new one needs no line here.

B ?= build
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DESTDIR ?=
PKG_CONFIG ?= pkg-config
FUZZ_CC ?= clang
FUZZ_SECONDS ?= 60
CFLAGS ?= -O2 -g
WERROR ?= -Werror

# The version stands in include/wptrack.h alone.
version_part = $(shell awk '$$2 == "WPT_VERSION_$(1)" { print $$3 }' include/wptrack.h)
VERSION := $(call version_part,MAJOR).$(call version_part,MINOR).$(call version_part,PATCH)
SONAME := libwptrack.so.0
SHARED := libwptrack.so.$(VERSION)

# Asked on first use, not when this file is read: `make deps` runs before the packages are there.
once = $(eval $(1) := $(2))$($(1))
PKGS := libzstd libxxhash liburcu-bp
PKG_CFLAGS = $(call once,PKG_CFLAGS,$(shell $(PKG_CONFIG) --cflags $(PKGS)))
PKG_LIBS = $(call once,PKG_LIBS,$(shell $(PKG_CONFIG) --libs $(PKGS)))
# Only wpsnap: it talks to QEMU's monitor.
JANSSON_CFLAGS = $(call once,JANSSON_CFLAGS,$(shell $(PKG_CONFIG) --cflags jansson))
JANSSON_LIBS = $(call once,JANSSON_LIBS,$(shell $(PKG_CONFIG) --libs jansson))
CMOCKA = $(call once,CMOCKA,$(shell $(PKG_CONFIG) --cflags --libs cmocka))

BASE_CFLAGS = -std=gnu11 -Wall -Wextra $(WERROR) -pthread -ffile-prefix-map=$(CURDIR)=. -Iinclude
LIB_CFLAGS = $(BASE_CFLAGS) -fPIC -fvisibility=hidden -Ilibwptrack $(PKG_CFLAGS)
LIBS = $(PKG_LIBS) -pthread

LIB_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard libwptrack/*.c))
CLI_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard tools/snapshot/*.c))
# Of a folder of tests, each file with a main is a program, and those without are linked to each of them.
programs = $(patsubst %.c,$(B)/%,$(shell grep -lE '^int (main|LLVMFuzzerTestOneInput)\b' /dev/null $(wildcard $(1))))
shared = $(filter-out $(call programs,$(1)),$(patsubst %.c,$(B)/%,$(wildcard $(1))))
UNIT := $(call programs,tests/unit/*.c)
KERNEL := $(call programs,tests/kernel/*.c)
HELPERS := $(call programs,tests/cli/*.c tests/demo/*.c)
BENCH := $(call programs,tests/bench/*.c)
QEMU := $(call programs,tests/qemu/*.c)
# In tests/vm, x_*.c belong to x.
VM := $(call programs,tests/vm/*.c)
EXAMPLES := $(call programs,examples/*.c)
SHARED_OBJ := $(addsuffix .o,$(foreach d,unit kernel bench,$(call shared,tests/$(d)/*.c)))
shared_of = $(filter $(@D)/%,$(SHARED_OBJ))
MAN_EXAMPLES := $(patsubst man/%.3,$(B)/man/%,$(wildcard man/*.3)) $(B)/man/libwptrack
FUZZ := $(patsubst $(B)/tests/fuzz/%,$(B)/fuzz/%,$(call programs,tests/fuzz/*.c))
FUZZ_OBJ := $(patsubst %.c,$(B)/fuzz/obj/%.o,$(wildcard libwptrack/*.c))

all: $(B)/libwptrack.a $(B)/wpsnap $(B)/libwptrack.so $(B)/wptrack.pc

# ---- the library and the command

$(B)/libwptrack/%.o: libwptrack/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LIB_CFLAGS) -MMD -MP -c $< -o $@

$(B)/tools/%.o: tools/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(BASE_CFLAGS) $(JANSSON_CFLAGS) -MMD -MP -c $< -o $@

$(B)/libwptrack.a: $(LIB_OBJ)
	@rm -f $@
	$(AR) rcsD $@ $^

$(B)/wpsnap: $(CLI_OBJ) $(B)/libwptrack.a
	$(CC) $(CFLAGS) $(LDFLAGS) $^ $(JANSSON_LIBS) $(LIBS) -o $@

# A header and a map that disagree stop the build: the script finds what only one of them has, the linker what nobody defines.
$(B)/$(SHARED): $(LIB_OBJ) libwptrack/libwptrack.map include/wptrack.h scripts/check-map
	@scripts/check-map
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=libwptrack/libwptrack.map \
		-Wl,--no-undefined-version -Wl,--no-undefined $(LIB_OBJ) $(LIBS) -o $@

$(B)/libwptrack.so: $(B)/$(SHARED)
	@ln -sf $(SHARED) $(B)/$(SONAME)
	@ln -sf $(SONAME) $@

# Made anew each time: its content depends on PREFIX and LIBDIR of this call.
$(B)/wptrack.pc: libwptrack/wptrack.pc.in FORCE
	@mkdir -p $(@D)
	@sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' $< >$@

# ---- tests, examples, bench: one file, one program

tests: $(UNIT) $(KERNEL) $(HELPERS) $(EXAMPLES) $(MAN_EXAMPLES)

.SECONDEXPANSION:
$(SHARED_OBJ): $(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LIB_CFLAGS) -Itests -MMD -MP -c $< -o $@

$(UNIT) $(KERNEL): $(B)/%: %.c $$(shared_of) $(B)/libwptrack.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LIB_CFLAGS) -Itests -MMD -MP $< $(shared_of) $(LDFLAGS) $(B)/libwptrack.a $(CMOCKA) $(LIBS) -o $@

$(BENCH): $(B)/%: %.c $$(shared_of) $(B)/libwptrack.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LIB_CFLAGS) -Itests -MMD -MP $< $(shared_of) $(LDFLAGS) $(B)/libwptrack.a $(LIBS) -lm -o $@

# A guest for QEMU: without a system, 32 bit, and its header within the first 8 KiB of the file.
$(B)/tests/bench/guest.elf: tests/bench/guest/guest.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra $(WERROR) -m32 -mno-sse -mno-mmx -ffreestanding -fno-pic -fno-stack-protector -fcf-protection=none \
		-fno-asynchronous-unwind-tables -no-pie -static -nostdlib -Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments $< -o $@

# The guest is alone in its initramfs.
$(B)/tests/qemu/guest: LDFLAGS += -static

$(HELPERS) $(QEMU): $(B)/%: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(BASE_CFLAGS) -Itests -MMD -MP $< $(LDFLAGS) -pthread -o $@

$(VM): $(B)/%: %.c $$(wildcard $$*_*.c) $$(wildcard tests/vm/*.h) libwptrack/uapi.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(BASE_CFLAGS) -Ilibwptrack $(filter %.c,$^) $(LDFLAGS) -pthread -o $@

# What a user compiles: the public header alone.
$(EXAMPLES): $(B)/%: %.c $(B)/libwptrack.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(BASE_CFLAGS) -MMD -MP $< $(LDFLAGS) $(B)/libwptrack.a $(LIBS) -o $@

$(B)/man/%.c: man/%.3 scripts/man-example
	@mkdir -p $(@D)
	scripts/man-example $< >$@

$(B)/man/%.c: man/%.7 scripts/man-example
	@mkdir -p $(@D)
	scripts/man-example $< >$@

$(MAN_EXAMPLES): $(B)/man/%: $(B)/man/%.c $(B)/libwptrack.a
	$(CC) $(CPPFLAGS) $(CFLAGS) $(BASE_CFLAGS) $< $(LDFLAGS) $(B)/libwptrack.a $(LIBS) -o $@

$(B)/fuzz/obj/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) -O1 -g $(LIB_CFLAGS) -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -MMD -MP -c $< -o $@

$(FUZZ): $(B)/fuzz/%: tests/fuzz/%.c $(FUZZ_OBJ)
	$(FUZZ_CC) $(CPPFLAGS) -O1 -g $(LIB_CFLAGS) -Itests -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all $^ $(LIBS) -o $@

# ---- commands

check:
	scripts/run-tests check $(B)

check-unit: all $(UNIT)
	scripts/run-tests unit $(B)

demo:
	scripts/demo $(B)

deps:
	scripts/deps

bench: all $(BENCH)
	@tests/bench/run.sh $(B)/tests/bench

# Beside what others offer: Redis, QEMU, gcore, CRIU where there is one, and the kernel's own means. Ten minutes.
bench-peers:
	scripts/deps build peers
	@$(MAKE) -s B=$(B) all $(BENCH) $(if $(filter x86_64,$(shell uname -m)),$(B)/tests/bench/guest.elf)
	@WPT_REPEATS=$(or $(WPT_REPEATS),30) tests/bench/run.sh $(B)/tests/bench first_write rounds scale peer_dump peer_qemu peer_redis

fuzz: $(FUZZ)
	scripts/run-fuzz $(FUZZ_SECONDS) $^

# The kernels that check-kernel boots: built or fetched if the cache does not have them.
kernel:
	scripts/kernel-build

check-kernel: all tests $(VM)
	scripts/kernel-check $(B)

# wpsnap qemu, with guests that prove themselves, under QEMU without KVM.
check-qemu:
	scripts/run-tests qemu $(B)

qemu-tests: $(QEMU) $(B)/tests/qemu/preload/away.so $(B)/tests/cli/target_json

$(B)/tests/qemu/preload/%.so: tests/qemu/preload/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(BASE_CFLAGS) -fPIC -shared $< $(LDFLAGS) -o $@

# What the patch saves and costs; for an idle machine.
figures: all $(BENCH)
	tests/vm/figures.sh $(B)

check-layers:
	scripts/check-layers

check-style:
	scripts/check-style

check-install: all
	scripts/check-install $(B)

check-abi: all
	scripts/check-abi $(B)

# ---- install

# mode:from:to; for a link: link:target:to. Uninstall removes the third column.
MAN := $(wildcard man/*.1 man/*.3 man/*.5 man/*.7)
SYMBOLS := $(shell sed -n 's/^\t\t\(wpt_[a-z_]*\);$$/\1/p' libwptrack/libwptrack.map)
# The page of a function is the one named like its object; a function without one is described in wpt_probe.3 or libwptrack.7.
page_of = $(strip $(foreach p,$(notdir $(wildcard man/*.3)),$(if $(filter $(basename $(p))_%,$(1)),$(p))))
alias = $(if $(wildcard man/$(1).3),,link:$(or $(call page_of,$(1)),$(page_of_$(1)),../man7/libwptrack.7):$(MANDIR)/man3/$(1).3)
page_of_wpt_feature_name := wpt_probe.3
INSTALLED = \
	755:$(B)/wpsnap:$(BINDIR)/wpsnap \
	644:include/wptrack.h:$(INCLUDEDIR)/wptrack.h \
	644:$(B)/libwptrack.a:$(LIBDIR)/libwptrack.a \
	755:$(B)/$(SHARED):$(LIBDIR)/$(SHARED) \
	link:$(SHARED):$(LIBDIR)/$(SONAME) \
	link:$(SONAME):$(LIBDIR)/libwptrack.so \
	644:$(B)/wptrack.pc:$(LIBDIR)/pkgconfig/wptrack.pc \
	$(foreach p,$(MAN),644:$(p):$(MANDIR)/man$(subst .,,$(suffix $(p)))/$(notdir $(p))) \
	$(foreach s,$(SYMBOLS),$(call alias,$(s))) \
	$(foreach p,$(wildcard tools/snapshot/completion/wpsnap.bash),644:$(p):$(DATADIR)/bash-completion/completions/wpsnap) \
	$(foreach p,$(wildcard tools/snapshot/completion/_wpsnap),644:$(p):$(DATADIR)/zsh/site-functions/_wpsnap)

install: all
	@DESTDIR='$(DESTDIR)' scripts/install install $(INSTALLED)

uninstall:
	@DESTDIR='$(DESTDIR)' scripts/install uninstall $(INSTALLED)

clean:
	rm -rf $(B)

FORCE:
.PHONY: all tests check check-unit demo deps bench bench-peers fuzz kernel check-kernel check-qemu qemu-tests figures check-layers check-style \
	check-install check-abi install uninstall clean FORCE
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:

-include $(wildcard $(B)/*/*.d $(B)/*/*/*.d $(B)/fuzz/obj/libwptrack/*.d)
