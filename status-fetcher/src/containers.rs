//! The containers of a cluster as Docker itself sees them, to be held against what the nodes report.

use crate::columns::{Cell, Column, Row, mebibytes, text};
pub use node_manager::engine::ContainerCpu;

impl Row for ContainerCpu {
    const COLUMNS: &'static [Column<Self>] = &[
        Column { name: "name", wide: false, cell: |container| text(&container.name) },
        Column { name: "used", wide: false, cell: |container| Cell::Number(container.used_cores, 2) },
        Column { name: "allotted", wide: false, cell: |container| Cell::Number(container.allotted_cores, 2) },
        Column { name: "cpu%", wide: false, cell: |container| Cell::Number(container.percent, 1) },
        Column {
            name: "throttled%",
            wide: false,
            cell: |container| {
                container.throttled_ratio.map_or(Cell::Unknown, |ratio| Cell::Number(ratio * 100.0, 0))
            },
        },
        Column { name: "mem_mib", wide: false, cell: |container| mebibytes(container.memory_bytes) },
        Column { name: "limit_mib", wide: true, cell: |container| mebibytes(container.memory_limit_bytes) },
        Column { name: "id", wide: true, cell: |container| text(&container.id) },
    ];
}
