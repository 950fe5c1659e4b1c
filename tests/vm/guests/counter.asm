; A boot sector that counts for ever, and checks its own memory while it does.
;
;   nasm -f bin -D PAGES=256 -D DELAY=200000 -D NIC=0 -D REINS=0 counter.asm -o counter.img
;
; Each turn reads the counter from memory, finds that number in each of PAGES pages and writes the next one there, then
; prints the new count on COM1 as eight hexadecimal digits and a line feed.  A page that holds anything but the count of
; the turn before was lost on the way to where the guest runs now: it prints "!" and stops for good.
;
;   PAGES  pages that a turn dirties, from AREA on
;   DELAY  turns of an empty loop between two counts; 0 for as fast as it can
;   NIC    1: a NE2000 at port 0x300 sends each count, little-endian, as the payload of a broadcast frame
;   REINS  1: a byte on COM2 has it stand still after the turn: it prints "=" on a line, and touches no memory until
;          another byte comes

%define COUNTER 0x8000          ; where the count is kept
%define AREA    0x100000        ; where the pages begin
%define COM1    0x3f8
%define COM2    0x2f8
%define NE2000  0x300
%define FRAME   60              ; the shortest there is, without its checksum
%define BUFFER  0x40            ; the first of the NE2000's pages of 256 bytes

bits 16
org 0x7c00
        cli
        xor     eax, eax
        mov     ds, ax
        in      al, 0x92        ; the gate of address line 20
        or      al, 2
        out     0x92, al
        lgdt    [descriptors.end]
        mov     eax, cr0
        inc     ax
        mov     cr0, eax
        jmp     8:flat

bits 32
flat:   mov     ax, 16
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, 0x7c00
        xor     eax, eax
        mov     [COUNTER], eax
        cld
        mov     edi, AREA       ; the BIOS has left things in it
        mov     ecx, PAGES * 1024
        rep     stosd
%if NIC
        mov     esi, bring_up
        mov     ecx, (bring_up.end - bring_up) / 2
        call    set_registers
%endif

turn:   mov     eax, [COUNTER]
        lea     ebx, [eax + 1]
        mov     edi, AREA
        mov     ecx, PAGES
page:   cmp     [edi], eax
        jne     lost
        mov     [edi], ebx
        add     edi, 4096
        dec     ecx
        jnz     page
        mov     [COUNTER], ebx

        mov     ecx, 8
        mov     edx, COM1
digit:  rol     ebx, 4
        mov     al, bl
        and     al, 15
        add     al, '0'
        cmp     al, '9'
        jbe     print
        add     al, 'a' - '9' - 1
print:  out     dx, al
        loop    digit
        mov     al, 10
        out     dx, al

%if NIC
        mov     [frame.count], ebx
        mov     esi, to_card
        mov     ecx, (to_card.end - to_card) / 2
        call    set_registers
        mov     esi, frame
        mov     ecx, FRAME
        mov     edx, NE2000 + 0x10
        rep     outsb
        mov     esi, to_wire
        mov     ecx, (to_wire.end - to_wire) / 2
        call    set_registers
%endif

%if REINS
        mov     edx, COM2 + 5   ; the line's state: bit 0 says that a byte has come
        in      al, dx
        test    al, 1
        jz      go_on
        mov     edx, COM2
        in      al, dx
        mov     edx, COM1
        mov     al, '='
        out     dx, al
        mov     al, 10
        out     dx, al
        mov     edx, COM2 + 5
still:  in      al, dx
        test    al, 1
        jz      still
        mov     edx, COM2
        in      al, dx
go_on:
%endif

%if DELAY
        mov     ecx, DELAY
idle:   dec     ecx
        jnz     idle
%endif
        jmp     turn

lost:   mov     edx, COM1
        mov     al, '!'
        out     dx, al
        mov     al, 10
        out     dx, al
stop:   hlt
        jmp     stop

%if NIC
; Write ECX registers of the card: pairs of register and value from ESI on.
set_registers:
        xor     edx, edx
next:   lodsw
        mov     dl, al
        mov     al, ah
        add     edx, NE2000
        out     dx, al
        xor     edx, edx
        loop    next
        ret

; Stopped, bytes one at a time, receiving nothing, no interrupts; then started.
bring_up:
        db 0x0, 0x21, 0xe, 0x48, 0xc, 0x20, 0xd, 0x00, 0xf, 0x00, 0x0, 0x22
.end:
; FRAME bytes come through the data port, for BUFFER.
to_card:
        db 0x8, 0, 0x9, BUFFER, 0xa, FRAME, 0xb, 0, 0x0, 0x12
.end:
; FRAME bytes leave from BUFFER.
to_wire:
        db 0x4, BUFFER, 0x5, FRAME, 0x6, 0, 0x0, 0x26
.end:
; To everybody, from a locally administered address, of the type for experiments; what follows fills it up.
frame:  db 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5
.count: dd 0
%endif

descriptors:                    ; none, all memory as code, all memory as data
        dq 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
.end:   dw .end - descriptors - 1
        dd descriptors

        times 510 - ($ - $$) db 0
        dw 0xaa55
