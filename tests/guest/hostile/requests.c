// SPDX-License-Identifier: Apache-2.0
/* Requests that are whole, and wrong. */
#include "hostile.h"

/* What the driver would never ask, and that the device keeps its books all the same. */
void requests(void)
{
	uint64_t end = region + region_size;

	bring_up_well();
	read_config();
	expect("unplug everything", UNPLUG_ALL, 0, 0, ACK);
	expect("plug 0 blocks", PLUG, region, 0, ERROR);
	expect("plug 65535 blocks", PLUG, region, 65535, ERROR);
	expect("plug 65535 blocks at the end", PLUG, end - block, 65535, ERROR);
	expect("plug one past the end", PLUG, end, 1, ERROR);
	expect("plug over the end", PLUG, end - block, 2, ERROR);
	expect("plug before the region", PLUG, region - block, 1, ERROR);
	expect("plug half a block", PLUG, region + block / 2, 1, ERROR);
	expect("plug memory of the boot", PLUG, 0, 1, ERROR);
	expect("plug round the end of addresses", PLUG, -block, 2, ERROR);
	expect("plug at the last address", PLUG, UINT64_MAX, 65535, ERROR);
	expect("plug more than requested", PLUG, region, (uint16_t)(requested / block + 1),
	       usable > requested ? NACK : ERROR);
	expect("unplug what is not plugged", UNPLUG, region, 1, ERROR);
	expect("unplug 0 blocks", UNPLUG, region, 0, ERROR);
	expect("unplug 65535 blocks", UNPLUG, region, 65535, ERROR);
	expect("unplug memory of the boot", UNPLUG, 0, 64, ERROR);
	expect("unplug round the end of addresses", UNPLUG, -block, 2, ERROR);
	expect("state of 0 blocks", STATE, region, 0, ERROR);
	expect("state past the end", STATE, end, 1, ERROR);
	expect("state round the end of addresses", STATE, -block, 65535, ERROR);
	expect("an unknown type", 0xffff, region, 1, ERROR);
	expect("plug a block", PLUG, region, 1, ACK);
	expect("plug it again", PLUG, region, 1, ERROR);
	expect("plug it with the next", PLUG, region, 2, ERROR);
	expect("unplug it with the next", UNPLUG, region, 2, ERROR);
	expect("state of both", STATE, region, 2, ACK);
	check("they are mixed", arena[REPLY + 8] == 2, "not mixed");
	read_config();
	check("one block is plugged", plugged == block, "another size");
	expect("unplug it", UNPLUG, region, 1, ACK);
	expect("unplug it again", UNPLUG, region, 1, ERROR);
	expect("plug all that is requested", PLUG, region, (uint16_t)(requested / block), ACK);
	expect("plug one more", PLUG, region + requested, 1, usable > requested ? NACK : ERROR);
	expect("unplug everything again", UNPLUG_ALL, 0, 0, ACK);
	read_config();
	check("nothing is plugged", plugged == 0, "something is");
}
