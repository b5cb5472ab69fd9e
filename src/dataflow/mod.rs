pub mod heat_index;
