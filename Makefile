# SPDX-License-Identifier: MIT
B ?= build
PKG_CONFIG ?= pkg-config
CFLAGS ?= -O2 -g
WPT_CFLAGS := -std=gnu11 -Wall -Wextra -Werror -fPIC -fvisibility=hidden -pthread -Iinclude -Ilibwptrack \
	$(shell $(PKG_CONFIG) --cflags libzstd libxxhash liburcu-bp)
LIBS := $(shell $(PKG_CONFIG) --libs libzstd libxxhash liburcu-bp) -pthread
LIB_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard libwptrack/*.c))
CLI_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard tools/snapshot/*.c))
all: $(B)/libwptrack.a $(B)/wpsnap
$(B)/%.o: %.c $(wildcard libwptrack/*.h include/*.h tools/snapshot/*.h)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(WPT_CFLAGS) -c $< -o $@
$(B)/libwptrack.a: $(LIB_OBJ)
	@rm -f $@
	$(AR) rcs $@ $^
$(B)/wpsnap: $(CLI_OBJ) $(B)/libwptrack.a
	$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LIBS) -o $@
clean:
	rm -rf $(B)
.PHONY: all clean
