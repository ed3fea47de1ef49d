/* SPDX-License-Identifier: MIT */
#include "pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

struct pooled {
	struct wpt_source source;
	struct wpt_pool *pool;
	struct pooled *next;       /* all of the pool */
	struct wpt_source *file;   /* NULL: closed for now */
	bool known;                /* size, dev and ino of the source are of the file that was added */
	unsigned int nr_users;     /* reads in flight; not closed meanwhile */
	uint64_t tick;             /* of the last use */
	char name[];
};

struct wpt_pool {
	pthread_mutex_t lock;      /* everything below, and of the pooled all but source and name */
	struct pooled *all;
	unsigned int nr_open, max_open;
	uint64_t tick;
	int dir_fd;
};

int wpt_pool_open(struct wpt_pool **out, int dir_fd)
{
	struct wpt_pool *p = calloc(1, sizeof(*p));
	struct rlimit limit;

	if (!p) {
		if (dir_fd >= 0)
			close(dir_fd);
		return -ENOMEM;
	}
	pthread_mutex_init(&p->lock, NULL);
	p->dir_fd = dir_fd;
	p->max_open = 256;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / 4 < p->max_open)
		p->max_open = (unsigned int)WPT_MAX(limit.rlim_cur / 4, (rlim_t)1);
	*out = p;
	return 0;
}

void wpt_pool_close(struct wpt_pool *p)
{
	struct pooled *f;

	if (!p)
		return;
	while ((f = p->all)) {
		p->all = f->next;
		if (f->file)
			f->file->close(f->file);
		free(f);
	}
	if (p->dir_fd >= 0)
		close(p->dir_fd);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

int wpt_pool_dir(const struct wpt_pool *p)
{
	return p->dir_fd;
}

const char *wpt_pool_name(const struct wpt_source *s)
{
	return ((const struct pooled *)s)->name;
}

static void file_close(struct wpt_pool *p, struct pooled *f)
{
	f->file->close(f->file);
	f->file = NULL;
	p->nr_open--;
}

/* Closes files until one more may be open, or all that are open are being read: many at once, as the list of all may be long. */
static void make_room(struct wpt_pool *p)
{
	struct pooled *f, *oldest;

	if (p->nr_open < p->max_open)
		return;
	for (f = p->all; f; f = f->next)
		if (f->file && !f->nr_users && p->tick - f->tick > p->max_open / 2)
			file_close(p, f);

	while (p->nr_open >= p->max_open) {
		oldest = NULL;
		for (f = p->all; f; f = f->next)
			if (f->file && !f->nr_users && (!oldest || f->tick < oldest->tick))
				oldest = f;
		if (!oldest)
			return;
		file_close(p, oldest);
	}
}

/* A file to which links are appended grows. */
static bool is_still(const struct wpt_source *was, const struct wpt_source *is)
{
	return is->dev == was->dev && is->ino == was->ino && is->size >= was->size;
}

static int ensure_open(struct wpt_pool *p, struct pooled *f)
{
	int rc;

	f->tick = ++p->tick;
	if (f->file)
		return 0;
	make_room(p);
	rc = wpt_source_file(&f->file, p->dir_fd, f->name);
	if (rc)
		return rc;
	p->nr_open++;
	/* Another file has the name by now, as of a link that became full: what is known of the first does not hold for it. */
	if (f->known && !is_still(&f->source, f->file)) {
		file_close(p, f);
		return -WPT_E_CHAIN;
	}
	return 0;
}

static int pooled_read(struct wpt_source *s, uint64_t offset, void *buf, size_t len)
{
	struct pooled *f = (struct pooled *)s;
	struct wpt_pool *p = f->pool;
	int rc;

	pthread_mutex_lock(&p->lock);
	rc = ensure_open(p, f);
	if (!rc)
		f->nr_users++;
	pthread_mutex_unlock(&p->lock);
	/* It was there when the pool got it. -ENOENT says that there is no such chain, and a writer then begins one. */
	if (rc)
		return rc == -ENOENT ? -WPT_E_CHAIN : rc;
	rc = f->file->read(f->file, offset, buf, len);
	pthread_mutex_lock(&p->lock);
	f->nr_users--;
	pthread_mutex_unlock(&p->lock);
	return rc;
}

static struct pooled *pooled_new(struct wpt_pool *p, const char *name)
{
	size_t len = strlen(name) + 1;
	struct pooled *f = calloc(1, sizeof(*f) + len);

	if (!f)
		return NULL;
	memcpy(f->name, name, len);
	f->pool = p;
	f->source.read = pooled_read;
	return f;
}

static void pooled_add(struct wpt_pool *p, struct pooled *f, struct wpt_source **out)
{
	f->source.size = f->file->size;
	f->source.dev = f->file->dev;
	f->source.ino = f->file->ino;
	f->known = true;
	f->next = p->all;
	p->all = f;
	*out = &f->source;
}

int wpt_pool_file(struct wpt_pool *p, const char *name, struct wpt_source **out)
{
	struct pooled *f = pooled_new(p, name);
	int rc;

	if (!f)
		return -ENOMEM;
	pthread_mutex_lock(&p->lock);
	rc = ensure_open(p, f);
	if (!rc)
		pooled_add(p, f, out);
	pthread_mutex_unlock(&p->lock);
	if (rc)
		free(f);
	return rc;
}

int wpt_pool_memory(struct wpt_pool *p, const void *data, size_t len, struct wpt_source **out)
{
	struct pooled *f = pooled_new(p, "");
	int rc;

	if (!f)
		return -ENOMEM;
	rc = wpt_source_memory(&f->file, data, len);
	if (rc) {
		free(f);
		return rc;
	}
	/* Never closed for room, as it can't be opened again: it has a user for ever. */
	f->nr_users = 1;
	pthread_mutex_lock(&p->lock);
	p->nr_open++;
	pooled_add(p, f, out);
	pthread_mutex_unlock(&p->lock);
	return 0;
}
