/* SPDX-License-Identifier: MIT */
/*
 * A guest for the QEMU benchmark that is there in a second: a multiboot program without a system. It fills memory from 16 MiB up with pages of
 * different kinds, says "filled" on the debug port, and from then on changes some pages at random at every tick of the timer, says "." and
 * sleeps until the next, as an idle system does. A busy one changes pages without a pause, of the first MEBIBYTES only, and says "." after each 1024.
 *
 * Command line: MEBIBYTES-TO-FILL PAGES-A-TICK (100 ticks a second) MEBIBYTES-THAT-ARE-BUSY (0: it is idle).
 */
#include <stdint.h>

#define START 0x1000000u
#define PAGE 4096u
#define TICKS 100u

__asm__(".section .multiboot, \"a\"\n"
	".long 0x1badb002, 0, -0x1badb002\n"
	".text\n"
	".globl _start\n"
	"_start:\n"
	"	mov $stack_end, %esp\n"
	"	push %ebx\n"
	"	call guest_main\n"
	"1:	hlt\n"
	"	jmp 1b\n"
	".globl on_tick\n"
	"on_tick:\n"
	"	push %eax\n"
	"	mov $0x20, %al\n"
	"	out %al, $0x20\n"
	"	pop %eax\n"
	"	iret\n"
	".bss\n"
	".balign 16\n"
	"	.skip 16384\n"
	"stack_end:\n"
	".text\n");

extern void on_tick(void);

struct __attribute__((packed)) table {
	uint16_t limit;
	uint32_t base;
};

static void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint32_t random_word(void)
{
	static uint32_t x = 2463534242u;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return x;
}

/* Flat segments of our own, one gate, and the timer at 100 a second. */
static void start_timer(void)
{
	static const uint64_t gdt[] = { 0, 0x00cf9a000000ffffull, 0x00cf92000000ffffull };
	static uint64_t idt[64];
	static const struct { uint8_t port, value; } pic[] = {
		{ 0x20, 0x11 }, { 0xa0, 0x11 }, { 0x21, 0x20 }, { 0xa1, 0x28 }, { 0x21, 4 }, { 0xa1, 2 }, { 0x21, 1 }, { 0xa1, 1 },
		{ 0x21, 0xfe }, { 0xa1, 0xff },
	};
	struct table g = { sizeof(gdt) - 1, (uint32_t)(uintptr_t)gdt }, i = { sizeof(idt) - 1, (uint32_t)(uintptr_t)idt };
	uint32_t handler = (uint32_t)(uintptr_t)on_tick, divisor = 1193182 / TICKS;

	idt[0x20] = (uint64_t)(handler & 0xffff0000u) << 32 | (uint64_t)0x8e00 << 32 | 8u << 16 | (handler & 0xffffu);
	__asm__ volatile("lgdt %0\n ljmp $8, $1f\n 1: mov $16, %%eax\n mov %%ax, %%ds\n mov %%ax, %%es\n mov %%ax, %%ss\n lidt %1"
			 : : "m"(g), "m"(i) : "eax", "memory");
	for (unsigned int n = 0; n < sizeof(pic) / sizeof(*pic); n++)
		outb(pic[n].port, pic[n].value);
	outb(0x43, 0x34);
	outb(0x40, (uint8_t)divisor);
	outb(0x40, (uint8_t)(divisor >> 8));
}

/* A tenth of the pages random bytes, a fifth half empty, the others records with much in common. */
static void fill_page(uint32_t *p, uint32_t number)
{
	uint32_t kind = number % 10;

	for (unsigned int i = 0; i < PAGE / 4; i++) {
		if (kind == 0)
			p[i] = random_word();
		else if (kind <= 2)
			p[i] = i < PAGE / 8 ? random_word() & 0xff : 0;
		else
			p[i] = i % 8 == 0 ? number * 128 + i : i % 8 == 3 ? random_word() & 0xfffff0 : i % 8;
	}
}

static uint32_t number(const char **text)
{
	uint32_t n = 0;

	while (**text && (**text < '0' || **text > '9'))
		++*text;
	while (**text >= '0' && **text <= '9')
		n = n * 10 + (uint32_t)(*(*text)++ - '0');
	return n;
}

/* QEMU puts its file's name before the words of -append. */
static const char *arguments(const uint32_t *info)
{
	const char *text = info[0] & 4 ? (const char *)(uintptr_t)info[4] : "";

	while (*text && *text != ' ')
		text++;
	return text;
}

static void change(uint32_t *memory, uint32_t pages, uint32_t nr)
{
	for (uint32_t i = 0; i < nr && pages; i++) {
		uint32_t r = random_word();

		memory[r % pages * (PAGE / 4) + r % 1000] = random_word();
	}
}

__attribute__((used)) void guest_main(const uint32_t *info)
{
	const char *text = arguments(info);
	uint32_t pages = number(&text) * 256, burst = number(&text), busy = number(&text) * 256;
	uint32_t *memory = (uint32_t *)(uintptr_t)START;

	for (uint32_t i = 0; i < pages; i++)
		fill_page(memory + i * (PAGE / 4), i);
	for (const char *c = "filled\n"; *c; c++)
		outb(0xe9, (uint8_t)*c);
	start_timer();
	for (;;) {
		if (!busy)
			__asm__ volatile("sti\n hlt" : : : "memory");
		change(memory, busy ? busy : pages, busy ? 1024 : burst);
		outb(0xe9, '.');
	}
}
