/* SPDX-License-Identifier: MIT */
#include "base.h"

#include <stdio.h>
#include <sys/mman.h>

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)

const char *wpt_version(void)
{
	return STRINGIFY(WPT_VERSION_MAJOR) "." STRINGIFY(WPT_VERSION_MINOR) "." STRINGIFY(WPT_VERSION_PATCH);
}

/* No default in the switch: a code without a text is a compiler's warning, and warnings are errors. */
static const char *own_text(enum wpt_error e)
{
	switch (e) {
	case WPT_E_UNSUPPORTED:
		return "not supported by this kernel or not allowed to this user; `wpsnap probe` says what is missing";
	case WPT_E_FORKED:
		return "the object belongs to a parent process; open one in this process";
	case WPT_E_SECCOMP:
		return "the target has a seccomp filter that can't be suspended; attach with CAP_SYS_ADMIN";
	case WPT_E_GONE:
		return "the target exited or executed another program";
	case WPT_E_STOP_TIMEOUT:
		return "the target's threads did not all stop in time; nothing is lost, try again";
	case WPT_E_SHARED_VM:
		return "another process shares the target's memory and can't be stopped; use mode fuzzy";
	case WPT_E_ARCH:
		return "the target runs code of another word size";
	case WPT_E_TRACED:
		return "a debugger is attached to the target; detach it first";
	case WPT_E_NOT_TRACKED:
		return "no such range is tracked";
	case WPT_E_DAMAGED:
		return "the snapshot is damaged; restore from an earlier link or another copy";
	case WPT_E_TRUNCATED:
		return "the snapshot is cut short; restore from an earlier link or another copy";
	case WPT_E_NOT_SNAPSHOT:
		return "not a snapshot file";
	case WPT_E_FEATURE:
		return "the snapshot needs a newer version of this program";
	case WPT_E_CHAIN:
		return "a link of the chain is missing or is not the one that its child was made from";
	case WPT_E_MISMATCH:
		return "the chain is of another target; use another folder or start a new chain";
	case WPT_E_LOCKED:
		return "another writer has the chain open";
	case WPT_E_STAGING:
		return "the dirty pages do not fit the staging memory; raise it or allow a longer pause";
	case WPT_E_AMBIGUOUS:
		return "the name fits several; give the address range or a longer prefix";
	case WPT_E_STORE:
		return "the store is unavailable; try again later";
	case WPT_E_PRUNED:
		return "the chain does not reach back to this link any more: it was pruned or merged away";
	case WPT_E_UNREADABLE:
		return "the page was not readable when the snapshot was taken";
	}
	return NULL;
}

const char *wpt_strerror(int err)
{
	const char *text;

	if (err == 0)
		return "success";
	if (err > 0)
		err = -err;
	if (err <= -WPT_E_UNSUPPORTED) {
		text = own_text((enum wpt_error)-err);
		return text ? text : "unknown error";
	}
	text = strerrordesc_np(-err);
	return text ? text : "unknown error";
}

void *wpt_vm_alloc(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void wpt_vm_free(void *p, size_t bytes)
{
	if (p)
		munmap(p, bytes);
}

void *wpt_vec_push(struct wpt_vec *v)
{
	size_t bytes;
	void *data;

	if ((v->count + 1) * v->elem_size > v->bytes) {
		bytes = v->bytes ? v->bytes * 2 : 65536;
		while ((v->count + 1) * v->elem_size > bytes)
			bytes *= 2;
		data = v->data ? mremap(v->data, v->bytes, bytes, MREMAP_MAYMOVE) : wpt_vm_alloc(bytes);
		if (!data || data == MAP_FAILED)
			return NULL;
		v->data = data;
		v->bytes = bytes;
	}
	data = (char *)v->data + v->count++ * v->elem_size;
	memset(data, 0, v->elem_size);
	return data;
}

void wpt_vec_clear(struct wpt_vec *v)
{
	v->count = 0;
}

void wpt_vec_free(struct wpt_vec *v)
{
	wpt_vm_free(v->data, v->bytes);
	v->data = NULL;
	v->count = v->bytes = 0;
}

uint64_t wpt_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int wpt_options_copy(void *to, size_t size, const void *from, size_t min)
{
	const unsigned char *bytes = from;
	size_t from_size, i;

	memset(to, 0, size);
	if (from) {
		memcpy(&from_size, from, sizeof(from_size));
		if (from_size < min)
			return -EINVAL;
		for (i = size; i < from_size; i++)
			if (bytes[i])
				return -EINVAL;
		memcpy(to, from, WPT_MIN(size, from_size));
	}
	memcpy(to, &size, sizeof(size));
	return 0;
}

int wpt_info_copy(void *to, const void *from, size_t size, size_t min)
{
	size_t to_size;

	memcpy(&to_size, to, sizeof(to_size));
	if (to_size < min)
		return -EINVAL;
	if (to_size > size)
		memset((char *)to + size, 0, to_size - size);
	memcpy(to, from, WPT_MIN(size, to_size));
	memcpy(to, &to_size, sizeof(to_size));
	return 0;
}

void wpt_logf(const struct wpt_log *log, enum wpt_log_level level, const char *format, ...)
{
	char message[512];
	va_list ap;

	if (!log->fn)
		return;
	va_start(ap, format);
	vsnprintf(message, sizeof(message), format, ap);
	va_end(ap);
	log->fn(log->arg, level, message);
}
